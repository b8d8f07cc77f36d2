"""Damaged and hostile input for the converter: whatever comes in, a UserError or success comes out.

    python tests/convert/fuzz.py --count 100000 [--first N] [--seed S] [--keep DIR]

Each run damages one file of one case, reads and converts it. Any other exception, an allocation beyond RLIMIT_AS, more
than LIMIT seconds, or an attempt to start a program is a finding, printed once per place in the code. Run K of a seed
is always the same: `--first K --count 1` repeats it.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from checkpoints import (
    MASK,
    VOCAB,
    dflash_config,
    dflash_tensors,
    eagle3_config,
    eagle3_tensors,
    save,
    write_json,
)
from dflash_checkpoints import (
    dflash2_config,
    dflash2_tensors,
    muse_config,
    muse_tensors,
    speculators_config,
    speculators_tensors,
)
from dflash_convert.conversion import LoadedTarget, convert
from dflash_convert.gguf_file import Metadata, text
from dflash_convert.inspection import inspect
from dflash_convert.pretokenizer import name_from_tokenizer_json
from dflash_tools.errors import UserError
from dspark_checkpoints import deepspec, dspark_tensors, gemma4, gemma4_tensors, specforge, speculators

sys.path.append(str(Path(__file__).parents[1]))  # as a script it has its own folder only
from old_gguf import BUUN, LUCEBOX, write_old

SEED = 20261122
LIMIT = 10.0
MEMORY = 1 << 30
STARTS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
ODD = [  # as JSON
    "null", "-1", "0", "1", "2", "3", "7", "320", str(2**31), str(2**32), str(2**63), str(2**64 - 1), str(10**400),
    "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", '""', '"x"', '"F32"', '"BF16"', '"F8_E4M3"', '"../../x"',
    '"\\u0000"', '"\\ud800"', "true", "false", "[]", "[0]", "[8, 4, 4]", "[1099511627776, 1099511627776]", '["x"]',
    "[[]]", "{}", '{"a": 1}', '{"rope_type": "llama3"}', '{"rope_type": "yarn", "factor": 1e38}',
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 4, 8, 31, 32, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62,
           2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip
KEYS = [
    "is_causal", "causal", "layer_types", "sliding_window", "use_sliding_window", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "use_swa", "eagle_config", "dflash_config", "norm_before_fc", "draft_vocab_size",
    "input_embedding_scale", "attention_value_scale", "rope_is_neox_style", "hidden_act", "target_hidden_size",
    "transformer_layer_config", "speculators_config", "markov_rank", "mask_token_id", "target_layer_ids",
    "num_key_value_heads", "head_dim", "attention_bias", "architectures", "quantization_config", "text_config",
    "eagle_aux_hidden_state_layer_ids", "output_multiplier", "final_logit_softcapping", "selector_rank",
]  # fmt: skip

Mutator = Callable[[bytes, random.Random], bytes]


@dataclass
class Case:
    """`files` in a directory, which of them are damaged and how, and what is then done with the directory."""

    name: str
    files: dict[str, bytes]
    damage: list[tuple[str, Mutator]]
    run: Callable[[Path], object]


@dataclass
class Findings:
    """What came out: counts of outcomes, and one traceback for each place that raised what it must not."""

    outcomes: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0


# How to damage bytes


def flip(data: bytes, rng: random.Random, reach: int | None = None) -> bytes:
    """A few bytes of the first `reach` changed, taken out or doubled."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(min(reach or len(out), len(out)))
        kind = rng.randrange(4)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del out[at : at + rng.randint(1, 8)]
        else:
            out[at:at] = out[at : at + rng.randint(1, 8)]
    return bytes(out)


def numbers(data: bytes, rng: random.Random, reach: int | None = None) -> bytes:
    """Some places of the first `reach` bytes overwritten by numbers that sizes and counts should not be."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((1, 2, 4, 8))
        at = rng.randrange(max(1, min(reach or len(out), len(out)) - size))
        out[at : at + size] = (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Too short or too long."""
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.8 else data + bytes(rng.randrange(1, 200))


def shuffled(data: bytes, rng: random.Random) -> bytes:
    """A piece of it copied to another place."""
    out = bytearray(data)
    size = rng.randrange(1, 64)
    source, place = rng.randrange(len(out)), rng.randrange(len(out))
    out[place : place + size] = out[source : source + size]
    return bytes(out)


def start_of(n: int) -> Mutator:
    """Damage within the first `n` bytes: headers."""
    return lambda data, rng: rng.choice((flip, numbers))(data, rng, n)


def changed_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with a few nodes replaced, removed, added or renamed."""
    out = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):  # one is enough to get past, or not, whatever is checked first
        nodes = [out]
        nodes += (v for node in nodes if isinstance(node, (dict, list)) for v in _children(node) if _is_node(v))
        node = rng.choice([n for n in nodes if _is_node(n)] or [{}])
        odd = json.loads(rng.choice(ODD))
        if isinstance(node, list):
            at = rng.randrange(len(node) + 1)
            node[at : at + rng.randint(0, 1)] = [odd] * rng.choice((0, 1, 1, 2))
            continue
        key = rng.choice([*node, rng.choice(KEYS)]) if node or rng.random() < 0.9 else "x"
        kind = rng.randrange(6)
        if kind == 0:
            node.pop(key, None)
        elif kind == 1:
            node[rng.choice(KEYS)] = node.pop(key, odd)
        elif kind == 2 and isinstance(node.get(key), int):
            node[key] = node[key] + rng.choice((-1, 1, 64, -64, 2**31))
        else:
            node[key] = odd
    return out


def _children(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node


def _is_node(value: Any) -> bool:
    return isinstance(value, (dict, list))


def json_file(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return flip(data, rng)
    if kind == 1:
        deep = (b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1' + b"0" * 5000 + b"}")
        return rng.choice((*deep, b"\xff\xfe", b"null", b""))
    return json.dumps(changed_json(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def safetensors_file(data: bytes, rng: random.Random) -> bytes:
    """Its header changed as JSON, with the right length in front."""
    n = int.from_bytes(data[:8], "little")
    kind = rng.randrange(6)
    if kind == 0:
        return start_of(n + 8)(data, rng)
    if kind == 1:
        return numbers(data, rng, n + 400)  # NaN, infinity
    header = json.dumps(changed_json(json.loads(data[8 : 8 + n]), rng)).encode("utf-8", "surrogatepass")
    length = len(header) if kind > 2 else rng.choice(NUMBERS)
    return (length & 2**64 - 1).to_bytes(8, "little") + header + data[8 + n :]


def torch_file(data: bytes, rng: random.Random) -> bytes:
    """The pickle inside changed and packed again, or the archive itself damaged."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice((flip, numbers, cut, shuffled))(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = _hostile_pickle(rng) if kind == 1 else rng.choice((flip, numbers, shuffled))(content, rng)
            new.writestr(name, content)
    return out.getvalue()


def _hostile_pickle(rng: random.Random) -> bytes:
    """Pickles that call something, that are no mapping, or that describe tensors larger than what they hold."""
    call = rng.choice((b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"csubprocess\nPopen\n"))
    plain: list[Any] = [[], {}, "x", {"a": 1}, {1: 2}, {"a": {"b": []}}, None, b"x", {"fc.weight": [1.0]}]
    return rng.choice(
        [
            b"\x80\x02" + call + b"X\x04\x00\x00\x00truetR.",
            b"\x80\x02" + call + b"(X\x04\x00\x00\x00truetR.",
            *(pickle.dumps(v, 2) for v in plain),
        ]
    )


def _hostile_tensors(own: dict[str, torch.Tensor]) -> list[bytes]:
    """State dicts in which one tensor is odd: far larger than its storage, sparse, complex, of another device, ..."""
    shape = own["fc.weight"].shape
    odd: list[Any] = [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(1).expand(1 << 20, 1 << 20),
        torch.zeros(64).expand(1 << 34, 64),  # flattening it would copy
        torch.zeros(1).expand(shape),
        torch.zeros(shape).to_sparse(),
        torch.zeros(shape, dtype=torch.complex64),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape[::-1]).t(),
        torch.zeros(shape, device="meta"),
        torch.nn.Parameter(torch.zeros(shape)),
        torch.zeros(0),
        torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
        [torch.zeros(shape)],
    ]
    found = []
    for value in odd:
        for name in ("fc.weight", "norm.weight", "layers.0.mlp.up_proj.weight"):
            out = io.BytesIO()
            torch.save({**own, name: value}, out)
            found.append(out.getvalue())
    return found


# What is damaged


def _read(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def small_target(path: Path) -> Path:
    """A GGUF target with a tokenizer, as small as it can be, so that damage meets its structure."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(8)
    writer.add_embedding_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", torch.zeros(VOCAB, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class HfTarget(LoadedTarget):
    """An HF target with a tokenizer that needs no process of its own."""

    def tokenizer(self, *, llama_rules: bool) -> Metadata:
        return {"tokenizer.ggml.model": text("gpt2")}


def make_cases(folder: Path) -> list[Case]:
    """All cases; `folder` is for files that stay as they are."""
    target_file = small_target(folder / "target.gguf")
    target_config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 8,
        "vocab_size": VOCAB, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "target").mkdir()
    write_json(folder / "target" / "config.json", target_config)
    target = HfTarget(folder / "target")

    def to_gguf(path: Path) -> object:
        return convert(path, target, path / "o.gguf")

    def drafter(name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], **more: Any) -> dict[str, bytes]:
        return _read(save(folder / name, config, tensors, **more))

    sliding = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "sliding_window": 64}
    flat = dflash_config(**sliding)
    dflash = drafter("dflash", flat, dflash_tensors(flat, own=("embed_tokens", "lm_head")))
    yarn = eagle3_config(rope_scaling={"rope_type": "yarn", "factor": 2.0}, norm_before_fc=True)
    families = {
        "dflash": dflash,
        "eagle3": drafter("eagle3", yarn, eagle3_tensors(yarn)),
        "deepspec": drafter("deepspec", deepspec(), dspark_tensors(deepspec(), own=("embed_tokens", "lm_head"))),
        "specforge": drafter("specforge", specforge(), dspark_tensors(specforge())),
        "gemma4": drafter("gemma4", gemma4(), gemma4_tensors(gemma4())),
        "speculators": drafter("speculators", speculators(), dspark_tensors(speculators())),
        "dflash2": drafter("dflash2", dflash2_config(), dflash2_tensors(dflash2_config())),
        "muse": drafter("muse", muse_config(), muse_tensors(muse_config())),
    }
    for name, second in (("speculators dflash", False), ("speculators dflash2", True)):
        config = speculators_config(second)
        families[name] = drafter(name, config, speculators_tensors(config))
    cases = [
        Case(name, files, [("model.safetensors", safetensors_file), ("config.json", json_file)], to_gguf)
        for name, files in families.items()
    ]
    shards = drafter("shards", dflash_config(), dflash_tensors(dflash_config()), shards=3)
    cases.append(Case("shards", shards, [(n, json_file) for n in shards if n.endswith("index.json")], to_gguf))
    card = {**dflash, "README.md": b"---\nlicense: mit\nbase_model: [org/m]\ntags: [a, b]\ndatasets: [x]\n---\ntext\n",
            "generation_config.json": b'{"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}'}  # fmt: skip
    cases.append(Case("card", card, [("README.md", flip), ("generation_config.json", json_file)], to_gguf))

    pickled = io.BytesIO()
    own = dflash_tensors(dflash_config())
    torch.save({n: t.to(torch.bfloat16) for n, t in own.items()}, pickled)
    binary = {"config.json": dflash["config.json"], "pytorch_model.bin": pickled.getvalue()}
    hostile = _hostile_tensors(own)
    binary_damage = [torch_file, torch_file, lambda data, rng: rng.choice(hostile)]
    cases.append(Case("torch", binary, [("pytorch_model.bin", d) for d in binary_damage], to_gguf))

    row = io.BytesIO()
    torch.save({"mask_token_id": MASK, "embedding": torch.randn(64)}, row)
    with_row = {**dflash, "mask_embedding.pt": row.getvalue()}
    cases.append(Case("mask row", with_row, [("mask_embedding.pt", torch_file), ("config.json", json_file)], to_gguf))

    def with_gguf_target(path: Path) -> object:
        return convert(folder / "dflash", path / "target.gguf", path / "o.gguf")

    data = target_file.read_bytes()
    reach = len(data) - VOCAB * 64 * 4
    damage = [("target.gguf", d) for d in (start_of(reach), start_of(400), cut, shuffled)]
    cases.append(Case("gguf target", {"target.gguf": data}, damage, with_gguf_target))

    def with_hf_target(path: Path) -> object:
        return convert(folder / "dflash", HfTarget(path), path / "o.gguf")

    files = {"config.json": json.dumps(target_config).encode()}
    cases.append(Case("hf target", files, [("config.json", json_file)], with_hf_target))

    def upgrade_gguf(path: Path) -> object:
        return convert(path / "d.gguf", target_file, path / "o.gguf")

    for name, config, tensors in (
        ("dflash gguf", flat, dflash_tensors(flat)),
        ("eagle3 gguf", yarn, eagle3_tensors(yarn)),
    ):
        made = convert(save(folder / f"for {name}", config, tensors), target_file, folder / f"{name}.gguf")[1]
        data = made.read_bytes()
        reach = data.index(b"blk.0.ffn_up.weight") + 60
        damage = [start_of(reach), start_of(900), cut, shuffled, flip]
        cases.append(Case(name, {"d.gguf": data}, [("d.gguf", d) for d in damage], upgrade_gguf))

    old_keys = {"dflash.block_size": 8, "dflash.mask_token_id": MASK, "dflash.target_layer_ids": [0, 2, 5],
                "attention.sliding_window": 64, "attention.sliding_window_pattern": [True, False]}  # fmt: skip
    for arch, names in (("dflash-draft", BUUN), ("qwen35-dflash-draft", LUCEBOX)):
        made = write_old(folder / f"{arch}.gguf", arch, flat, dflash_tensors(flat), names=names, keys=old_keys)
        damage = [start_of(3000), start_of(900), cut, shuffled]
        cases.append(Case(f"{arch} gguf", {"d.gguf": made.read_bytes()}, [("d.gguf", d) for d in damage], upgrade_gguf))

    def name_pretokenizer(path: Path) -> object:
        return name_from_tokenizer_json(path / "tokenizer.json")

    def check(path: Path) -> object:
        """Whatever is in there, the report is printable text."""
        shown = str(inspect(path / "d.gguf" if (path / "d.gguf").is_file() else path, target))
        if not shown.replace("\n", "").isprintable():
            raise RuntimeError(f"not printable: {shown!r}")
        return shown

    gguf_cases = [c for c in cases if c.name in ("dflash gguf", "eagle3 gguf")]
    for case in [c for c in cases if c.name in ("dflash", "eagle3", "deepspec", "dflash2")] + gguf_cases:
        cases.append(Case(f"check {case.name}", case.files, case.damage, check))

    tokenizer = {
        "version": "1.0", "added_tokens": [{"id": 1, "content": "x", "special": True}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
    }  # fmt: skip
    files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    cases.append(Case("tokenizer", files, [("tokenizer.json", json_file)], name_pretokenizer))
    for case in cases:
        _unharmed(case, folder / "unharmed")
    return cases


def _unharmed(case: Case, folder: Path) -> None:
    """Undamaged, a case is read (or refused for what it is), so that the damage is what is tested."""
    folder.mkdir()
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    try:
        case.run(folder)
    except UserError as e:
        if case.name != "tokenizer":
            raise AssertionError(f"case {case.name}: {e}") from e
    shutil.rmtree(folder)


# Running it


def fuzz(cases: list[Case], runs: range, seed: int, scratch: Path, keep: Path | None = None) -> Findings:
    """Do `runs` of `seed`, each in a fresh directory under `scratch`; `keep` gets the input of each finding."""
    found = Findings()
    with _watched() as started:
        for k in runs:
            rng = random.Random(f"{seed}:{k}")
            case = cases[k % len(cases)]
            folder = scratch / "run"
            folder.mkdir()
            damaged, damage = rng.choice(case.damage)
            for name, data in case.files.items():
                (folder / name).write_bytes(damage(data, rng) if name == damaged else data)
            before = time.monotonic()
            try:
                case.run(folder)
                outcome = "success"
            except UserError:
                outcome = "refused"
            except Exception as e:
                outcome = "FINDING"
                _note(found, k, case, e, folder, keep)
            if started:
                outcome = "FINDING"
                _note(found, k, case, RuntimeError(f"tried to start something: {started.pop()}"), folder, keep)
            left = [p.name for p in folder.iterdir() if p.name not in case.files and p.name != "o.gguf"]
            if left or (outcome != "success" and (folder / "o.gguf").exists()):
                _note(found, k, case, RuntimeError(f"left behind: {left or 'o.gguf'}"), folder, keep)
            found.outcomes[f"{case.name}: {outcome}"] += 1
            took = time.monotonic() - before
            if took > LIMIT:
                _note(found, k, case, RuntimeError(f"took more than {LIMIT:.0f} s"), folder, keep)
            found.slowest = max(found.slowest, took)
            shutil.rmtree(folder)
    return found


def _note(found: Findings, k: int, case: Case, e: Exception, folder: Path, keep: Path | None) -> None:
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "dflash_convert" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else str(e)[:60]
    place = f"{type(e).__name__} at {where}"
    if place in found.places:
        return
    found.places[place] = f"run {k}, case {case.name}: {''.join(traceback.format_exception(e)[-6:])}"
    if keep:
        shutil.copytree(folder, keep / f"run-{k}", dirs_exist_ok=True)


_watching: list[str] | None = None


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _watching is not None and event in STARTS:
        _watching.append(f"{event} {str(args)[:80]}")


@contextmanager
def _watched() -> Iterator[list[str]]:
    """A bound on the memory of what is done inside, and what it tried to start."""
    global _watching

    if not getattr(sys, "_fuzz_hook", False):
        sys.addaudithook(_hook)  # cannot be taken away again
        sys._fuzz_hook = True  # type: ignore[attr-defined]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    started: list[str] = []
    _watching = started
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield started
    finally:
        _watching = None
        resource.setrlimit(resource.RLIMIT_AS, limits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", help="name of one case")
    parser.add_argument("--keep", type=Path, help="directory for the inputs of findings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        (Path(scratch) / "cases").mkdir()
        cases = [c for c in make_cases(Path(scratch) / "cases") if args.only in (None, c.name)]
        step = 1000
        total = Findings()
        for first in range(args.first, args.first + args.count, step):
            runs = range(first, min(first + step, args.first + args.count))
            found = fuzz(cases, runs, args.seed, Path(scratch), args.keep)
            total.outcomes += found.outcomes
            total.slowest = max(total.slowest, found.slowest)
            for place, text_ in found.places.items():
                if place not in total.places:
                    total.places[place] = text_
                    print(f"\n{place}\n{text_}", flush=True)
            said = f"{runs.stop}: {len(total.places)} findings, slowest {total.slowest:.2f} s"
            print(said, file=sys.stderr, flush=True)
    for name, n in sorted(total.outcomes.items()):
        print(f"{n:8} {name}")
    print(f"{args.count} runs, {len(total.places)} findings")
    return int(bool(total.places))


if __name__ == "__main__":
    sys.exit(main())
