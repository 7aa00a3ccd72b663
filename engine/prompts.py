"""Templates or a prompt file -> a stream of Prompts, the same ones with the same ids on every machine.

Promises constant memory however many combinations or lines there are: a template's combinations are walked in the
order of a seeded permutation that is computed, not stored, and a file is read as it is asked. No combination repeats
before all were used; then, unless the teacher is greedy, a new round begins in another order. Knows nothing of
teachers, filters or disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import xxhash

from engine.config import Config, Prompts
from engine.errors import ConfigError
from engine.named_files import file_key
from engine.prompt_file import PromptFile
from engine.rows import Prompt, hash_id, row_seed
from engine.templates import Template, content_hash, disjoint, load_templates

DEFAULT_COUNT = 1000
"""Prompts asked of templates where `prompts.count` is not set."""
ROUNDS = 4
"""Feistel rounds; four make a pseudo-random permutation. Source: Luby and Rackoff, 1988."""


class Permutation:
    """A seeded permutation of range(size), computed element by element (a Feistel network, cycle-walked)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._seed = seed
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < self.size:
            raise IndexError(number)
        number = self._mix(number)
        while number >= self.size:
            number = self._mix(number)
        return number

    def _mix(self, number: int) -> int:
        left, right = number >> self._half_bits, number & self._mask
        for turn in range(ROUNDS):
            key = right.to_bytes(16, "little") + bytes([turn])
            mixed = xxhash.xxh3_64_intdigest(key, seed=self._seed & 0xFFFFFFFFFFFFFFFF)
            left, right = right, left ^ (mixed & self._mask)
        return left << self._half_bits | right


class Source:
    """All prompts of a run, in order."""

    count: int | None
    """How many prompts there are to ask; None where only the space of combinations ends them."""
    fingerprint: str
    """Hash of what the prompts are made from."""
    schemas: Mapping[str, str] = MappingProxyType({})
    """Hashes of schemas that it leaves out, each under a key that names its file."""
    disjoint: bool
    """No two template ids can make the same instruction."""
    plain: bool
    """No prompt has an input beside its instruction."""
    names: frozenset[str]
    """Ids of the templates."""

    def prompts(self, start: int = 0) -> Iterator[Prompt]:
        """Yield the prompts from number `start` on."""
        raise NotImplementedError

    def left(self, index: int) -> Iterable[str]:
        """Return the templates that may have a prompt after this one, which `prompts` has reached."""
        return self.names


class TemplateSource(Source):
    """Prompts from templates; which template comes next is a seeded draw by weight."""

    def __init__(self, path: Path, *, count: int | None, seed: int, run_seed: int, repeat: bool) -> None:
        self.templates = load_templates(path)
        self.count = count
        self.fingerprint = content_hash(path)
        self.disjoint = disjoint(self.templates)
        self.plain = True
        self.names = frozenset(template.id for template in self.templates)
        self._seed = seed
        self._run_seed = run_seed
        self._repeat = repeat
        self._ended: dict[str, int] = {}
        """Index of the prompt that was drawn in place of the first that a template no longer had."""

    def left(self, index: int) -> Iterable[str]:
        return (name for name in self.names if self._ended.get(name, index + 1) > index)

    def prompts(self, start: int = 0) -> Iterator[Prompt]:
        used: Counter[str] = Counter()
        active = list(self.templates)
        index = 0
        while active and (self.count is None or index < self.count):
            template = self._draw(active, index)
            turn, number = divmod(used[template.id], template.size)
            if turn and not self._repeat:
                active.remove(template)
                self._ended[template.id] = index
                continue
            if index >= start:
                yield self._prompt(template, turn, number, index)
            used[template.id] += 1
            index += 1

    def _draw(self, active: list[Template], index: int) -> Template:
        if len(active) == 1:
            return active[0]
        point = xxhash.xxh3_64_intdigest(f"{self._seed}\x1f{index}".encode()) / 2**64
        point *= sum(template.weight for template in active)
        for template in active:
            point -= template.weight
            if point < 0:
                return template
        return active[-1]

    def _prompt(self, template: Template, turn: int, number: int, index: int) -> Prompt:
        order = Permutation(
            template.size, xxhash.xxh3_64_intdigest(f"{self._seed}\x1f{template.id}\x1f{turn}".encode())
        )
        combination = order[number]
        instruction = template.fill(template.values(combination))
        prefix = [text for turn_ in template.prefix for text in (turn_.role, turn_.content)]
        prompt_id = hash_id(template.id, str(turn), str(combination), instruction, *prefix)
        return Prompt(
            index=index,
            id=prompt_id,
            template=template.id,
            instruction=instruction,
            prefix=template.prefix,
            max_tokens=template.max_tokens,
            seed=row_seed(self._run_seed, prompt_id),
            constraint=template.constraint,
        )


class FileSource(Source):
    """The user's own prompts, in the order of their file."""

    def __init__(self, path: Path, *, count: int | None, run_seed: int) -> None:
        self._file = PromptFile(path)
        self._run_seed = run_seed
        self._asked = min(count or len(self._file), len(self._file))
        self.count = self._asked
        self.plain = self._file.plain
        self.names = self._file.templates
        self.disjoint = self._file.disjoint
        self.fingerprint = self._file.fingerprint
        self.schemas = {file_key("prompts.json_schema", name): digest for name, digest in self._file.schemas.items()}

    def prompts(self, start: int = 0) -> Iterator[Prompt]:
        for index, (number, record) in zip(range(start, self._asked), self._file.records(start), strict=False):
            prompt_id = hash_id(record.template, str(number), record.instruction, record.input)
            yield Prompt(
                index=index,
                id=prompt_id,
                template=record.template,
                instruction=record.instruction,
                input=record.input,
                prefix=record.prefix,
                max_tokens=record.max_tokens,
                seed=row_seed(self._run_seed, prompt_id),
                constraint=record.constraint,
            )


class SampledSource(Source):
    """Every prompt of another source several times in a row, each time with another id and seed."""

    def __init__(self, source: Source, *, samples: int, run_seed: int) -> None:
        self.count = source.count * samples if source.count is not None else None
        self.fingerprint = source.fingerprint
        self.schemas = source.schemas
        self.disjoint = source.disjoint
        self.plain = source.plain
        self.names = source.names
        self._source = source
        self._samples = samples
        self._run_seed = run_seed

    def left(self, index: int) -> Iterable[str]:
        return self._source.left(index // self._samples)

    def prompts(self, start: int = 0) -> Iterator[Prompt]:
        first, skipped = divmod(start, self._samples)
        for prompt in self._source.prompts(first):
            for sample in range(skipped, self._samples):
                yield msgspec.structs.replace(
                    prompt,
                    index=prompt.index * self._samples + sample,
                    id=hash_id(prompt.id, str(sample)),
                    seed=row_seed(self._run_seed, prompt.id, sample),
                )
            skipped = 0


def open_source(settings: Prompts, *, run_seed: int, greedy: bool, endless: bool = False, samples: int = 1) -> Source:
    """Return where the prompts come from, each `samples` times; `endless`: without a count, templates go on and on.

    Raises: ConfigError where neither or both of `prompts.templates` and `prompts.file` are set.
    """
    if bool(settings.templates) == bool(settings.file):
        raise ConfigError("set one of prompts.templates (a template file) and prompts.file (JSONL of your own prompts)")
    if samples > 1:
        once = open_source(settings, run_seed=run_seed, greedy=greedy, endless=endless)
        return SampledSource(once, samples=samples, run_seed=run_seed)
    if settings.file:
        return FileSource(Path(settings.file), count=settings.count, run_seed=run_seed)
    count = settings.count or (None if endless else DEFAULT_COUNT)
    return TemplateSource(
        Path(settings.templates), count=count, seed=settings.seed, run_seed=run_seed, repeat=not greedy
    )


def source_of(settings: Config) -> Source:
    """Return where the prompts of a run come from, each as often as it is a row of its own."""
    sampling = settings.sampling
    return open_source(
        settings.prompts,
        run_seed=sampling.seed,
        greedy=sampling.temperature == 0,
        endless=bool(settings.output.accepted or settings.output.quotas or settings.output.candidates),
        samples=sampling.rows_per_prompt,
    )
