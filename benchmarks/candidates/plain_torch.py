"""A plain PyTorch/transformers step of SparsePO or DPO, without tricks: both responses concatenated into one
batch of prompt + response rows, the full log-softmax of policy and reference, the official mask net (one
linear a layer over a shared LayerNorm, a mixer, relu twice).

    python plain_torch.py sparsepo|dpo SHAPE PROMPT RESPONSE PAIRS [PAIRS ...] [--precision TYPE]

SHAPE: the content of a config.json. Runs on the GPU if there is one. --precision: see on_torch.py.
"""

import argparse
import functools

import torch
from on_torch import DEVICE, PRECISIONS, casting, device_peak, make_model, versions
from serve import LossBefore, serve


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

    def __init__(self, kind: str, policy, reference, beta: float = 0.8, precision: str = "float32"):
        self.policy, self.reference, self.beta, self.precision = policy, reference, beta, precision
        config, self.masks = policy.config, None
        if kind == "sparsepo":
            masks = OfficialMask(config.num_hidden_layers, config.hidden_size)
            self.masks = masks.to(policy.device, policy.dtype)
        parameters = [*policy.parameters(), *(self.masks.parameters() if self.masks else [])]
        self._loss_before = LossBefore()
        self.parameters, self.optimizer = parameters, torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)

    def __call__(self, ids, attention_mask, response) -> float:
        """ids [2B, S], chosen rows first; response [2B, S]: which tokens are the response's."""
        with casting(self.precision):
            loss = self.loss(ids, attention_mask, response)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return self._loss_before(loss.detach())

    def loss(self, ids, attention_mask, response) -> torch.Tensor:
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
        return -torch.nn.functional.logsigmoid(logits).mean()


def make_models(shape: str, precision: str = "float32"):
    """(policy, frozen reference) with the same weights."""
    policy, reference = make_model(shape, precision), make_model(shape, precision)
    reference.load_state_dict(policy.state_dict())
    return policy, reference.eval().requires_grad_(False)


def random_pairs(pairs: int, prompt: int, response: int, vocab: int) -> tuple[torch.Tensor, ...]:
    """(ids, attention mask, which tokens are the response's), chosen rows first."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab, (pairs, prompt), generator=generator)
    responses = torch.randint(vocab, (2 * pairs, response), generator=generator)
    ids = torch.cat([prompts.repeat(2, 1), responses], dim=1)
    is_response = torch.arange(prompt + response).expand_as(ids) >= prompt
    return tuple(x.to(DEVICE) for x in (ids, torch.ones_like(ids), is_response))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("sparsepo", "dpo"))
    parser.add_argument("shape")
    parser.add_argument("prompt", type=int)
    parser.add_argument("response", type=int)
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    options = parser.parse_args()

    @functools.cache
    def models() -> Step:
        """Made with the first step: until then nothing is on the device."""
        return Step(options.kind, *make_models(options.shape, options.precision), precision=options.precision)

    @functools.cache
    def batch(pairs: int) -> tuple[torch.Tensor, ...]:
        return random_pairs(pairs, options.prompt, options.response, models().policy.config.vocab_size)

    def advance(pairs: int):
        return {"loss": models()(*batch(pairs))} | device_peak()

    serve({str(pairs): functools.partial(advance, pairs) for pairs in options.pairs}, versions=versions())


if __name__ == "__main__":
    main()
