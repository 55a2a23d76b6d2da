"""The script that checks every family on a device elsewhere: right libraries pass it, others do not."""

from __future__ import annotations

import families
import numpy as np


def test_right_and_wrong_logits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(families, "CONTEXTS", (1, 17))
    families.make(tmp_path, "cpu", ["llama_mha"])
    assert families.check(tmp_path, "cpu") and "WRONG" not in capsys.readouterr().out
    file = tmp_path / "llama_mha-q4f16_1" / families.EXPECTED
    logits = np.load(file)["logits"]
    for wrong in (logits + 0.05 * logits.std() * np.eye(2)[1, :, None, None], np.where(logits > 0, logits, np.nan)):
        np.savez(file, logits=wrong)
        assert not families.check(tmp_path, "cpu") and "WRONG" in capsys.readouterr().out
    assert not families.check(tmp_path / "nothing", "cpu")
