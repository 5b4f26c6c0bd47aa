"""A plain PyTorch/transformers step of SparsePO or DPO, without tricks: both responses concatenated into one
batch of prompt + response rows, the full log-softmax of policy and reference, the official mask net (one
linear a layer over a shared LayerNorm, a mixer, relu twice).

    python plain_torch.py sparsepo|dpo PAIRS PROMPT RESPONSE VOCAB WIDTH LAYERS
"""

import sys

import torch
import transformers
from serve import serve
from transformers import GPT2Config, GPT2LMHeadModel


class OfficialMask(torch.nn.Module):
    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layer_norm = torch.nn.LayerNorm(width)
        self.w_per_layer = torch.nn.ModuleList(torch.nn.Linear(width, 1) for _ in range(layers))
        self.mixer = torch.nn.Linear(layers, 1, bias=False)
        for linear in self.w_per_layer:
            torch.nn.init.normal_(linear.weight, std=0.02)
            torch.nn.init.ones_(linear.bias)
        torch.nn.init.constant_(self.mixer.weight, 1 / layers)

    def forward(self, states):
        per_layer = [
            torch.relu(linear(self.layer_norm(state)))
            for linear, state in zip(self.w_per_layer, states, strict=True)
        ]
        return torch.relu(self.mixer(torch.cat(per_layer, dim=-1)))[..., 0]


class Step:
    """One optimizer step: AdamW, gradients clipped at norm 1."""

    def __init__(self, kind: str, policy, reference, beta: float = 0.8):
        self.kind, self.policy, self.reference, self.beta = (
            kind,
            policy,
            reference.eval().requires_grad_(False),
            beta,
        )
        config = policy.config
        self.masks = OfficialMask(config.n_layer, config.n_embd) if kind == "sparsepo" else None
        parameters = [*policy.parameters(), *(self.masks.parameters() if self.masks else [])]
        self.parameters, self.optimizer = parameters, torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)

    def __call__(self, ids, attention_mask, response) -> float:
        """ids [2B, S], chosen rows first; response [2B, S]: which tokens are the response's."""
        labels, keep = ids[:, 1:], response[:, 1:]
        with torch.no_grad():
            ref_output = self.reference(
                ids,
                attention_mask=attention_mask,
                output_hidden_states=self.masks is not None,
                use_cache=False,
            )
            ref_logps = ref_output.logits[:, :-1].log_softmax(-1)
        logps = (
            self.policy(ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].log_softmax(-1)
        )

        def pick(x):
            return torch.gather(x, 2, labels[..., None])[..., 0]

        ratio = pick(logps) - pick(ref_logps)

        def margin(x):
            sums = (x * keep).sum(-1)
            return sums[: len(sums) // 2] - sums[len(sums) // 2 :]

        if self.masks is None:
            logits = self.beta * margin(ratio)
        else:
            kl = (ref_logps.exp() * (ref_logps - logps)).sum(-1)
            mask = self.masks([state[:, :-1] for state in ref_output.hidden_states[1:]])
            logits = self.beta * (margin(mask * ratio) - margin(mask * kl))
        loss = -torch.nn.functional.logsigmoid(logits).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())


def make_models(vocab: int, positions: int, width: int, layers: int):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    policy, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    reference.load_state_dict(policy.state_dict())
    return policy, reference


def main() -> None:
    kind, (pairs, prompt, response, vocab, width, layers) = sys.argv[1], map(int, sys.argv[2:])
    step = Step(kind, *make_models(vocab, prompt + response, width, layers))
    generator = torch.Generator().manual_seed(0)
    prompts, responses = (
        torch.randint(vocab, (pairs, prompt), generator=generator),
        torch.randint(vocab, (2 * pairs, response), generator=generator),
    )
    ids = torch.cat([prompts.repeat(2, 1), responses], dim=1)
    is_response = torch.arange(prompt + response).expand_as(ids) >= prompt
    attention_mask = torch.ones_like(ids)
    serve(
        lambda: step(ids, attention_mask, is_response),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


if __name__ == "__main__":
    main()
