"""The legend of axes: names of arrays end in the letters of theirs, and annotations have the same."""

# What each letter of a shape stands for. 1 is an axis of size 1.
LETTERS = {
    "A": "the models side by side: policy, reference",
    "B": "pairs, or rows of a batch",
    "C": "tokens of a chunk",
    "D": "width of the residual stream",
    "E": "equal parts of the vocabulary, one for each device that holds one",
    "F": "width of the MLP",
    "G": "query heads that share a key/value head",
    "H": "dims of a head, or of a head that are rotated",
    "I": "blocks of queries",
    "J": "blocks of keys",
    "K": "key/value heads",
    "L": "layers",
    "M": "response tokens of a row",
    "N": "query heads",
    "P": "responses of a pair: 0 chosen, 1 rejected",
    "Q": "sequences of a row",
    "R": "rows of tokens",
    "S": "positions of a row, or queries",
    "T": "tokens of a response",
    "U": "micro-steps of an update",
    "V": "vocabulary, or a part of it",
    "W": "positions of a sequence",
    "X": "features of whatever is meant",
}

# Files in which a letter means something else, everywhere in the file.
LETTERS_OF_FILES = {
    "models/cache.py": {
        "C": "columns of the cache",
        "F": "features of a convolution",
        "Y": "tokens that a convolution reaches back",
    },
    "models/delta_net.py": {"F": "features of a convolution", "Y": "tokens that a convolution reaches"},
    "models/experts.py": {
        "E": "experts",
        "K": "experts that a token is sent to",
        "T": "tokens",
        "Y": "rows, one for each choice; in weights, features that are written",
    },
    "models/layers.py": {
        "F": "features of a convolution",
        "T": "keys",
        "Y": "tokens that a convolution reaches back",
    },
    "models/modules.py": {"Y": "features that a projection writes"},
    "ops/attention.py": {"T": "keys"},
    "ops/block_attention.py": {"T": "keys"},
    "ops/dense_attention.py": {"T": "keys"},
    "ops/grouped.py": {
        "E": "experts",
        "I": "blocks of rows",
        "K": "experts that a token is sent to",
        "T": "tokens",
        "Y": "rows, one for each choice",
    },
    "ops/grouped_kernels.py": {"E": "experts", "Y": "rows, one for each choice"},
    "ops/routing.py": {"E": "experts", "K": "experts that a token is sent to"},
    "ops/gated_delta.py": {
        "I": "chunks",
        "T": "tokens of a chunk that others see",
        "M": "memories: of the last token, and of its prompt",
        "Z": "memories before a chunk",
    },
    "ops/sequence_attention.py": {"T": "keys"},
    "ops/short_convolution.py": {"Y": "tokens that a convolution reaches"},
    "ops/triton_attention.py": {"C": "columns of a row, padded to whole blocks"},
    "ops/triton_kernels.py": {"C": "columns of a row, padded to whole blocks"},
    "ops/visits.py": {"C": "columns of a row, padded to whole blocks", "T": "keys"},
}
