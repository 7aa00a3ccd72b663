"""Top-k distillation: its loss against dense references, probabilities at their tokens, and what a student learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from students import (
    answer_logits,
    captured_from,
    make_config,
    make_rows,
    smollm2,
    tiny_student,
    tiny_teacher,
    write_run,
)

from engine.errors import ConfigError, MissingError, TrainError
from trainer import kd_loss
from trainer.captured import NUMBER, TOPK_IDS, TOPK_LOGPROBS, Captured, WithTeacher, match
from trainer.examples import example_of
from trainer.kd_loss import distillation_loss, forward_kl
from trainer.render import Rendered, load_chat, render
from trainer.train import check, train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

VOCABULARY = 37


def drawn(seed: int, places: int = 6) -> tuple[Any, Any, Any]:
    """Return a student's logits, a teacher's log-probabilities over the whole vocabulary, and targets."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    logits = (torch.randn(places, VOCABULARY, generator=draw) * 3).requires_grad_()
    teacher = torch.log_softmax(torch.randn(places, VOCABULARY, generator=draw) * 3, dim=-1)
    return logits, teacher, torch.randint(VOCABULARY, (places,), generator=draw)


def bucketed(logits: Any, teacher: Any, ids: Any) -> Any:
    """The same divergence, dense and in float64: both sides are summed into K tokens and the rest."""
    import torch

    q, p = torch.softmax(logits.double(), dim=-1), teacher.double().exp()
    parts = []
    for whole in (p, q):
        head = whole.gather(-1, ids)
        rest = (whole * torch.ones_like(whole).scatter(-1, ids, 0)).sum(-1, keepdim=True)
        parts.append(torch.cat([head, rest], dim=-1))
    return (parts[0] * (parts[0].log() - parts[1].log())).sum(-1)


def test_with_the_whole_vocabulary_it_is_the_exact_divergence() -> None:
    import torch

    logits, teacher, _ = drawn(0)
    top = teacher.topk(VOCABULARY)
    ours = forward_kl(logits, top.indices, top.values)
    dense = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), teacher, reduction="none", log_target=True).sum(
        -1
    )
    torch.testing.assert_close(ours, dense)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, torch.softmax(logits, -1) - teacher.exp(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [1, 2, 20])
def test_with_a_part_of_it_the_rest_is_one_bucket(width: int) -> None:
    import torch

    logits, teacher, _ = drawn(1)
    top = teacher.topk(width)
    ours, dense = forward_kl(logits, top.indices, top.values), bucketed(logits, teacher, top.indices)
    torch.testing.assert_close(ours.double(), dense, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, dense)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    # What is stored is half as wide; that costs little.
    stored = forward_kl(logits, top.indices.int(), top.values.half())
    torch.testing.assert_close(stored, ours, atol=5e-3, rtol=5e-3)


def test_one_candidate_teaches_how_sure_the_teacher_is() -> None:
    """Without the tail, the best student for one known token would be certain of it."""
    import torch

    logits = torch.zeros(1, VOCABULARY, requires_grad=True)
    ids, logprobs = torch.tensor([[5]]), torch.tensor([[0.6]]).log()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        forward_kl(logits, ids, logprobs).sum().backward()
        optimizer.step()
    assert torch.softmax(logits, -1)[0, 5].item() == pytest.approx(0.6, abs=1e-3)


def test_a_student_that_is_sure_gets_a_finite_gradient() -> None:
    import torch

    logits = torch.zeros(2, VOCABULARY)
    logits[:, 3] = 80.0
    logits.requires_grad_()
    ids, logprobs = torch.tensor([[3], [3]]), torch.tensor([[0.5], [1.0]]).log()
    loss = forward_kl(logits, ids, logprobs)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) + 80 - np.log(36)), rel=1e-3)
    assert loss[1].item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 3].item() == pytest.approx(0.5, abs=1e-3)


def test_a_candidate_that_is_not_there_changes_nothing() -> None:
    import torch

    logits, teacher, _ = drawn(2)
    top = teacher.topk(4)
    absent = top.values.clone()
    absent[:, 3] = -torch.inf
    ids = top.indices.clone()
    ids[:, 3] = 0
    narrow = forward_kl(logits, top.indices[:, :3], top.values[:, :3])
    torch.testing.assert_close(forward_kl(logits, ids, absent), narrow)


def test_a_candidate_beyond_the_student_s_vocabulary_is_none() -> None:
    """Of one family and tokenizer, Qwen2.5-7B has 152,064 places and Qwen2.5-1.5B has 151,936."""
    logits, teacher, targets = drawn(4)
    top = teacher.topk(4)
    ids, logprobs = top.indices.clone(), top.values.clone()
    ids[2, 1], logprobs[2, 1] = VOCABULARY + 3, -float("inf")
    without = distillation_loss(logits, targets, ids.clamp(max=VOCABULARY - 1), logprobs, weight=0.5)
    logprobs[2, 1] = top.values[2, 1]
    assert distillation_loss(logits, targets, ids, logprobs, weight=0.5).item() == without.item()


def test_both_losses_are_mixed_and_a_place_without_a_teacher_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    logits, teacher, targets = drawn(3, places=9)
    top = teacher.topk(5)
    known = torch.arange(9) % 3 != 1
    logprobs = top.values.masked_fill(~known.unsqueeze(-1), -torch.inf)
    entropy = cross_entropy(logits, targets, reduction="none")
    mixed = 0.3 * bucketed(logits, teacher, top.indices).float() + 0.7 * entropy
    expected = torch.where(known, mixed, entropy).sum()
    gradients = []
    for places in (512, 2):
        monkeypatch.setattr(kd_loss, "CHUNK_PLACES", places)
        loss = distillation_loss(logits, targets, top.indices, logprobs, weight=0.3)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        gradients.append(torch.autograd.grad(loss, logits)[0])
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradients, [wanted, wanted], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def rendered() -> list[Rendered]:
    return list(render(load_chat(smollm2(), {}), [example_of(row) for row in make_rows(6)]))


def captured(row: Rendered, tokens: list[int], width: int = 3) -> SimpleNamespace:
    """A record whose first candidate is the token itself."""
    ids = np.array([[token + place for place in range(width)] for token in tokens], dtype=np.int32)
    return SimpleNamespace(
        id=row.example.id,
        token_ids=np.array(tokens, dtype=np.int32),
        topk_ids=ids.reshape(len(tokens), width),
        topk_logprobs=np.full((len(tokens), width), -1.5, dtype=np.float16),
    )


def test_probabilities_go_to_rows_of_the_same_tokens(rendered: list[Rendered]) -> None:
    answers = [list(row.input_ids[row.prompt_tokens :]) for row in rendered]
    end, other_end, spare = answers[0][-1], 0, 777
    sampled = [answers[0], answers[1][:-1], [*answers[2][:-1], other_end], [spare, *answers[3][1:]], [end]]
    records = [captured(row, tokens) for row, tokens in zip(rendered, sampled, strict=False)]
    found = match(rendered, records, frozenset({end, other_end}))
    lengths = [None if candidates is None else len(candidates.ids) for candidates in found.rows]
    assert lengths == [len(answers[0]), len(answers[1]) - 1, len(answers[2]) - 1, None, None, None]
    assert (found.unmatched, found.width) == (3, 3)


def test_a_batch_has_each_probability_at_the_place_that_predicts_its_token(rendered: list[Rendered]) -> None:
    import torch

    records = [captured(row, list(row.input_ids[row.prompt_tokens :])) for row in rendered]
    found = match(rendered, [*records[:2], *records[3:]], frozenset())
    longest = max(row.tokens for row in rendered)
    labels = torch.full((3, longest), -100)
    for place, row in enumerate(rendered[1:4]):
        labels[place, row.prompt_tokens : row.tokens] = torch.tensor(list(row.input_ids[row.prompt_tokens :]))
    batch = WithTeacher(lambda rows: {"labels": labels}, found)([{NUMBER: number} for number in (1, 2, 3)])
    there = batch[TOPK_LOGPROBS].isfinite()
    trained = labels[:, 1:] != -100
    trained[1] = False  # of this row nothing was captured
    assert there.all(-1).equal(trained)
    assert batch[TOPK_IDS][..., 0][trained].equal(labels[:, 1:][trained].int())
    assert batch[TOPK_LOGPROBS][trained].eq(-1.5).all()


def test_rows_without_numbers_are_left_alone() -> None:
    collate = WithTeacher(lambda rows: {"labels": len(rows)}, Captured([], 0))
    assert collate([{"input_ids": [1]}]) == {"labels": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a student and a teacher."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_student(folder / "student"), tiny_teacher(folder / "teacher")


def divergence(teacher: Path, student: Path, rows: list[Rendered]) -> float:
    """Return the exact KL(teacher || student) a token, over rows."""
    import torch
    from transformers import AutoModelForCausalLM

    one, other = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (teacher, student))
    sums = [
        torch.nn.functional.kl_div(
            torch.log_softmax(answer_logits(other, row), -1),
            torch.log_softmax(answer_logits(one, row), -1),
            reduction="sum",
            log_target=True,
        ).item()
        for row in rows
    ]
    return sum(sums) / sum(row.trained_tokens for row in rows)


def test_the_teacher_s_probabilities_bring_the_student_closer_to_it(
    tmp_path: Path, models: tuple[Path, Path], rendered: list[Rendered]
) -> None:
    student, teacher = models
    rows = make_rows(40)
    run = write_run(tmp_path / "run", rows, logprobs=captured_from(teacher, rows, width=20))
    keys: dict[str, Any] = {"max_steps": 60, "learning_rate": 1e-2, "batch_size": 8, "gradient_accumulation": 1}
    found = {}
    for method in ("sft", "topk_kd"):
        done = train(make_config(student, teacher=teacher, method=method, **keys), run, tmp_path / method)
        assert (done.method, done.steps, done.unmatched) == (method, 60, 0)
        assert done.eval_loss is not None
        found[method] = divergence(teacher, tmp_path / method / "student", rendered)
    assert found["topk_kd"] < 0.8 * found["sft"]


def test_an_adapter_learns_from_the_teacher_too(tmp_path: Path, models: tuple[Path, Path]) -> None:
    student, teacher = models
    rows = make_rows(12)
    logprobs = captured_from(teacher, rows, width=4)
    # As if these answers had been read back as other tokens.
    logprobs |= dict.fromkeys(["row3", "row4"], captured_from(teacher, make_rows(1, output="else"), width=4)["row0"])
    run = write_run(tmp_path / "run", rows, logprobs=logprobs)
    config = make_config(student, teacher=teacher, method="topk_kd", tuning="lora", max_steps=2, val_fraction=0)
    assert check(config, run)["unmatched"] == 2
    done = train(config, run, run)
    assert (done.adapter, done.unmatched, done.backend) == ("student", 2, "trl")


def test_what_cannot_be_distilled_is_a_sentence(tmp_path: Path, models: tuple[Path, Path]) -> None:
    student, teacher = models
    rows = make_rows(8)
    plain = write_run(tmp_path / "plain", rows)
    config = make_config(student, teacher=teacher, method="topk_kd")
    with pytest.raises(MissingError, match=r"holds no log-probabilities; generate with sampling\.logprobs"):
        train(config, plain, plain)
    other = captured_from(teacher, make_rows(1, output="else"), width=4)["row0"]
    odd = write_run(tmp_path / "odd", rows, logprobs=dict.fromkeys((row.id for row in rows), other))
    with pytest.raises(TrainError, match="the trained tokens are not those that the teacher sampled"):
        train(config, odd, odd)
    with pytest.raises(ConfigError, match=r"topk_kd keeps rows apart; set train\.packing = false"):
        train(make_config(student, teacher=teacher, method="topk_kd", packing=True), odd, odd)
    foreign = tmp_path / "foreign"
    with_one_more_token(teacher, foreign)
    with pytest.raises(ConfigError, match="needs a student with the teacher's own vocabulary, and 1 tokens differ"):
        train(make_config(student, teacher=foreign, method="topk_kd"), odd, odd)
    assert not (odd / "student").exists()


def with_one_more_token(model: Path, target: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(target)
    AutoConfig.from_pretrained(model).save_pretrained(target)
