import torch

from tune_fusion.training import memory

GB = 2**30


def test_what_is_shared_with_other_processes_is_not_a_processes_own(tmp_path):
    status = tmp_path / "status"
    status.write_text(
        "Name:\tpython\nVmHWM:\t  900 kB\nVmRSS:\t 800 kB\nRssFile:\t 300 kB\nRssShmem:\t 50 kB\n"
    )
    assert memory.own_peak(status) == 550 * 1024


def test_memory_that_was_held_for_a_while_counts():
    # A peak says nothing of what stays below it: another test may have held more before.
    before = memory.own_peak()
    block = torch.ones(before + 64 * 2**20, dtype=torch.uint8)
    del block
    assert memory.own_peak() - before > 32 * 2**20


def test_another_system_has_a_peak_too(tmp_path):
    assert memory.own_peak(tmp_path / "none") > 10 * 2**20


def available(tmp_path, **files):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {32 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\nHugePages_Total: 0\n")
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return memory.available(meminfo, tmp_path)


def test_the_machine_says_what_is_available(tmp_path):
    assert available(tmp_path) == 8 * GB


def test_a_container_may_have_less(tmp_path):
    stat = f"anon {GB}\ninactive_file {GB}\n"
    limits = {"memory_max": f"{6 * GB}\n", "memory_current": f"{4 * GB}\n", "memory_stat": stat}
    assert available(tmp_path, **limits) == 3 * GB
    assert available(tmp_path, **limits | {"memory_max": f"{60 * GB}\n"}) == 8 * GB
    assert available(tmp_path, **limits | {"memory_max": "max\n"}) == 8 * GB


def test_this_machine_has_memory_and_its_cpu_is_no_gpu():
    assert memory.available() > 2**20
    assert memory.gpu_used_and_total(torch.device("cpu")) is None
