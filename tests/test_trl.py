"""Coming from TRL: our step and its DPOTrainer's, on the same weights and the same batches."""

import copy
import random

import jax
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.tiny import pair_table, row_table
from helpers.tolerances import TRAINED
from sparsepo_jax.build.compute import put_on
from sparsepo_jax.build.loading import load_weights
from sparsepo_jax.build.models import policy_config, read_spec
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.data.packing import Shape, pack
from sparsepo_jax.sharding.mesh import make_mesh

trl = pytest.importorskip("trl")
STEPS, PAIRS, VOCAB, END = 20, 4, 31, "<end>"


def make_trainer(model, directory, *, trainer="DPO", **settings):
    """TRL's trainer, as its loop has it before the first step. Sequences have 3 to 14 tokens, and prompts and
    responses various lengths."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({str(n): n for n in range(VOCAB - 1)} | {END: VOCAB - 1}, unk_token=END)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    draws = random.Random(0)

    def text():
        return " ".join(str(draws.randrange(VOCAB - 1)) for _ in range(draws.randint(1, 6)))

    rows = [{"prompt": text() + " ", "chosen": text(), "rejected": text()} for _ in range(STEPS * PAIRS)]
    if trainer == "KTO":
        labels = [draws.random() < 0.5 for _ in rows]
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": label}
            for row, label in zip(rows, labels, strict=True)
        ]
    module, references = trl, {"ref_model": copy.deepcopy(model)}
    if trainer == "CPO":
        module, references = pytest.importorskip("trl.experimental.cpo"), {}
    made = getattr(module, f"{trainer}Trainer")(
        model,
        **references,
        args=getattr(module, f"{trainer}Config")(
            output_dir=str(directory),
            use_cpu=True,
            bf16=False,
            fp16=False,
            per_device_train_batch_size=PAIRS,
            gradient_checkpointing=False,
            disable_dropout=True,
            weight_decay=0.1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_steps=STEPS,
            disable_tqdm=True,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END),
    )
    made.create_optimizer_and_scheduler(STEPS)
    made.model_wrapped, made.optimizer = made.accelerator.prepare(made.model, made.optimizer)
    made.current_gradient_accumulation_steps = 1
    return made


def their_step(trainer, batch):
    """What Trainer's loop does with a batch; the loss before the update."""
    loss = trainer.training_step(trainer.model_wrapped, batch)
    trainer.accelerator.clip_grad_norm_(trainer.model_wrapped.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.model_wrapped.zero_grad()
    return float(loss)


def pairs_of(batch):
    """(prompt, chosen, rejected) ids of a batch of TRL's, which has all chosen sequences before all rejected
    ones."""
    ids, seen, answer = (batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask"))
    prompts = [ids[n][(seen[n] == 1) & (answer[n] == 0)].tolist() for n in range(PAIRS)]
    responses = [ids[n][answer[n] == 1].tolist() for n in range(2 * PAIRS)]
    return list(zip(prompts, responses[:PAIRS], responses[PAIRS:], strict=True))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_type": "sigmoid"}, {"kind": "dpo"}),
        pytest.param({"loss_type": "ipo"}, {"kind": "ipo"}, marks=pytest.mark.slow),
        pytest.param({"loss_type": "hinge"}, {"kind": "hinge"}, marks=pytest.mark.slow),
        pytest.param(
            {"loss_type": "robust", "label_smoothing": 0.2},
            {"kind": "robust", "label_smoothing": 0.2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss_type": "sigmoid", "ld_alpha": 0.3}, {"kind": "ldpo", "alpha": 0.3}, marks=pytest.mark.slow
        ),
        *(
            pytest.param(
                {"loss_type": theirs, **settings}, {"kind": ours, **settings}, marks=pytest.mark.slow
            )
            for theirs, ours, settings in (
                ("sigmoid_norm", "dpo_norm", {}),
                ("exo_pair", "exo", {"label_smoothing": 0.1}),
                ("discopop", "discopop", {}),
                ("nca_pair", "nca", {}),
                ("bco_pair", "bco_pair", {}),
                ("sppo_hard", "sppo", {}),
                ("apo_zero", "apo_zero", {}),
                ("apo_down", "apo_down", {}),
                ("aot", "aot", {"label_smoothing": 0.1}),
                ("aot_unpaired", "aot_unpaired", {}),
            )
        ),
        pytest.param(
            {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.3]},
            {
                "kind": "mix",
                "parts": [
                    {"weight": 0.8, "objective": {"kind": "dpo", "beta": 0.5}},
                    {"weight": 0.3, "objective": {"kind": "bco_pair", "beta": 0.5}},
                ],
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss_type": "sigmoid", "use_weighting": True},
            {"kind": "dpo", "policy_weight": "aligned"},
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(
                {"loss_type": "sigmoid", "f_divergence_type": theirs, **settings},
                {"kind": "fdpo", "alpha": alpha},
                marks=pytest.mark.slow,
            )
            for theirs, alpha, settings in (
                ("forward_kl", 0.0, {}),
                ("js_divergence", None, {}),
                ("alpha_divergence", 0.3, {"f_alpha_divergence_coef": 0.3}),
            )
        ),
    ],
    ids=lambda value: value.get("kind", ""),
)
def test_twenty_steps_have_the_losses_of_trl(theirs, ours, tmp_path):
    """Loss, gradient, clipping, AdamW: an error in any of them grows from step to step.

    Kills: another beta or sign; the closing EOS left out of a response; weight decay on biases and norms,
    which Trainer leaves alone.
    """
    model = make_model(tmp_path)
    trainer = make_trainer(model, tmp_path / "trl", beta=0.5, **theirs)
    batches = list(trainer.get_train_dataloader())
    table = pair_table([pair for batch in batches for pair in pairs_of(batch)])
    objective = ours if ours["kind"] == "mix" else {"beta": 0.5, **ours}
    compare_losses(trainer, batches, table, objective, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_twenty_steps_on_single_responses_have_the_losses_of_trl(kind, tmp_path):
    """With TRL's own mismatched responses. Kills: another baseline, no clamp at 0, exchanged weights."""
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = make_trainer(
        make_model(tmp_path), tmp_path / "trl", trainer="KTO", loss_type=kind, beta=0.5, **weights
    )
    batches = list(trainer.get_train_dataloader())
    table = row_table([row for batch in batches for row in rows_of(batch, "")])
    if kind == "kto":
        others = row_table([row for batch in batches for row in rows_of(batch, "KL_")])
        table = table.with_columns(mismatched=others)
    compare_losses(trainer, batches, table, {"kind": kind, "beta": 0.5, **weights}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_type": "alphapo", "alpha": 0.25, "simpo_gamma": 0.3}, {"kind": "alphapo", "gamma": 0.3}),
        ({"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.3}, {"kind": "simpo", "gamma": 0.3}),
        ({"loss_type": "sigmoid", "cpo_alpha": 0.0}, {"kind": "cpo", "alpha": 0.0}),
    ],
    ids=lambda value: value.get("kind", ""),
)
def test_twenty_steps_without_a_reference_have_the_losses_of_trl(theirs, ours, tmp_path):
    """Of its CPOTrainer, without its likelihood, which it averages otherwise. Kills: gamma times beta; a
    reward of sums where it is one of means, or the reverse."""
    trainer = make_trainer(make_model(tmp_path), tmp_path / "trl", trainer="CPO", beta=0.5, **theirs)
    batches = list(trainer.get_train_dataloader())
    table = pair_table([pair for batch in batches for pair in labelled_pairs_of(batch)])
    compare_losses(trainer, batches, table, {"beta": 0.5, **ours}, tmp_path)


def labelled_pairs_of(batch):
    """(prompt, chosen, rejected) ids of a batch of CPOTrainer's, whose labels are -100 on prompts."""
    chosen, rejected = (batch[f"{name}_labels"].numpy() for name in ("chosen", "rejected"))
    prompts, seen = batch["prompt_input_ids"].numpy(), batch["prompt_attention_mask"].numpy()
    return [
        (
            prompts[n][seen[n] == 1].tolist(),
            *(labels[n][labels[n] != -100].tolist() for labels in (chosen, rejected)),
        )
        for n in range(PAIRS)
    ]


def rows_of(batch, prefix):
    """(prompt, response, label) of a batch of KTOTrainer's; prefix "KL_": with its mismatched responses."""
    names = (f"{prefix}{name}" for name in ("input_ids", "attention_mask", "completion_mask"))
    ids, seen, answer = (batch[name].numpy() for name in names)
    return [
        (
            ids[n][(seen[n] == 1) & (answer[n] == 0)].tolist(),
            ids[n][answer[n] == 1].tolist(),
            bool(batch["label"][n]),
        )
        for n in range(PAIRS)
    ]


def make_model(directory):
    """A tiny random model, which is also saved in directory/model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=VOCAB,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=VOCAB - 1,
        eos_token_id=VOCAB - 1,
    )
    model = GPT2LMHeadModel(shape)
    model.save_pretrained(directory / "model")
    return model


def compare_losses(trainer, batches, table, objective, tmp_path):
    """Trains both on the same batches from the same weights, and compares the losses of all steps."""
    config = Config(
        stages=["po"],
        output_dir=str(tmp_path),
        policy={"path": str(tmp_path / "model")},
        data={"train": [{"path": "unused"}]},
        objective=objective,
        po={
            "steps": STEPS,
            "batch_size": PAIRS,
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
            "schedule": {"kind": "constant", "warmup_steps": 0},
        },
    )
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    spec = read_spec(policy_config(config, None), "model", None)
    problem = make_problem(config, spec, spec, mesh)
    step = make_step(config, "po", problem, spec, STEPS, mesh)
    policy = load_weights(config.policy.path, spec, mesh)
    state = step.start({"policy": policy, "masks": {}})
    theirs_T, ours_T = [], []
    with jax.set_mesh(mesh):
        for number, batch in enumerate(batches):
            rows = np.arange(number * PAIRS, (number + 1) * PAIRS)
            micro_step = pack(table, rows, Shape(PAIRS * 20, PAIRS * 14, 20), 7, rows=1, shared=True)
            state, metrics, _ = step.update(
                state, policy, put_on(mesh)(jax.tree.map(lambda x: x[None], micro_step))
            )
            ours_T.append(float(metrics["loss"]))
            theirs_T.append(their_step(trainer, batch))
    assert len(ours_T) == STEPS and np.ptp(theirs_T) > 0.05, "the loss moves"
    np.testing.assert_allclose(ours_T, theirs_T, atol=TRAINED)
