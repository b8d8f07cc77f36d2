"""What disturbed a measurement is said, what did not is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from dflash_tools.bench.machine import machine, model_file
from dflash_tools.bench.watch import CpuTimes, GpuSample, Watch, cpu_disturbances, gpu_disturbances
from dflash_tools.errors import UserError

QUIET = GpuSample(0, busy=98, clock=1980, max_clock=1980, temperature=60, power=400, reasons=0)


def sample(**changes: float) -> GpuSample:
    return GpuSample(**{**QUIET.__dict__, **changes})


def test_the_load_of_others_is_said_and_the_own_is_not():
    start, later = CpuTimes(100.0, 10.0, 1000.0), CpuTimes(120.0, 29.0, 1010.0)
    assert cpu_disturbances(start, later, 2) == []
    busy = CpuTimes(120.0, 15.0, 1010.0)
    assert cpu_disturbances(start, busy, 2) == ["other processes kept 1.5 of 2 cores busy on average"]


def test_a_quiet_card_is_not_mentioned():
    idle = sample(busy=0, clock=210)
    assert gpu_disturbances([idle, QUIET, QUIET, idle]) == []


def test_a_hot_card_is_named_with_its_temperature():
    found = gpu_disturbances([QUIET, sample(reasons=0x20, temperature=84), QUIET, QUIET])
    assert found == ["GPU 0: software thermal slowdown in 25% of the samples under load, up to 84 °C"]


def test_a_clock_that_moves_under_load_is_named():
    (found,) = gpu_disturbances([QUIET, QUIET, sample(clock=1500)])
    assert found == "GPU 0: its clock moved under load, from 1500 to 1980 MHz (median 1980, limit 1980)"


def test_each_card_is_judged_by_its_own_samples():
    other = sample(card=1, clock=1000)
    assert gpu_disturbances([QUIET, other, QUIET, other]) == []


def test_lines_of_nvidia_smi_are_read_and_gaps_are_skipped():
    line = "0, 97, 1980, 1980, 61, 402.55, 0x0000000000000004\n"
    assert GpuSample.parse(line) == GpuSample(0, 97.0, 1980.0, 1980.0, 61.0, 402.55, 4)
    assert GpuSample.parse("0, 97, [N/A], 1980, 61, 402.55, 0x0") is None
    assert GpuSample.parse("") is None


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path) -> None:
    """A stand-in that throttles, and knows one card."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        "if '-lms' in sys.argv:\n"
        "    while True:\n"
        "        print('0, 99, 1200, 1980, 88, 300.0, 0x40', flush=True)\n"
        "        time.sleep(0.02)\n"
        "print('Toy 3000, 24576, 580.00, 350.00')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_a_card_is_watched_while_it_works(nvidia_smi):
    with Watch() as watch:
        deadline = time.monotonic() + 10
        while len(watch.gpu) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert any("hardware thermal slowdown in 100%" in said for said in watch.disturbances())
    assert watch.clocks() == {"gpu0": {"sm_mhz": [1200.0, 1200.0, 1200.0], "max_celsius": 88.0, "max_watts": 300.0}}


def test_the_machine_names_its_card_and_driver(nvidia_smi):
    found = machine()
    assert (found["gpus"], found["driver"]) == (["Toy 3000, 24576 MiB, power limit 350.00 W"], "580.00")
    assert found["cores"] >= 1


def test_a_busy_child_of_the_measurement_is_no_disturbance():
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc here, so the load of others is not known")
    with Watch() as watch:
        subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    own = watch.after.own - watch.before.own
    assert own > 0.1
    assert watch.after.all - watch.before.all >= own - 0.1


def test_a_model_is_told_by_name_size_and_digest(tmp_path):
    one, two = tmp_path / "a.gguf", tmp_path / "b.gguf"
    one.write_bytes(b"GGUF" + bytes(100))
    two.write_bytes(b"GGUF" + bytes(99) + b"\1")
    assert model_file(one)["file"] == "a.gguf"
    assert model_file(one)["bytes"] == 104
    assert model_file(one)["digest"] != model_file(two)["digest"]
    with pytest.raises(UserError, match=r"c\.gguf: cannot be read"):
        model_file(tmp_path / "c.gguf")
