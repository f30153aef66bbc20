"""What a record says of the machine."""

import pytest
import torch

from hf_compress.measurement import environment as module

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse avx avx2 avx512_vnni amx_int8\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "processor", "instructions"),
    [(X86, "Some CPU", ["avx2", "avx512_vnni", "amx_int8"]), (ARM, None, ["asimddp", "i8mm"]), (None, None, [])],
)
def test_processors_of_one_name_are_told_apart_by_their_instructions(
    monkeypatch, tmp_path, text, processor, instructions
):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    found = module.environment()
    assert found["instructions"] == instructions
    assert found["processor"]
    assert processor in (None, found["processor"])


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="of x86 processors")
def test_torch_sees_the_same_instructions():
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    assert ("avx512f" if is_wide else "avx2") in module.environment()["instructions"]
