"""What processes must agree in."""

import pytest

from omnitune.distributed.parallel import SharedError, gather, require_agreement, together

pytestmark = pytest.mark.unit


def test_processes_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3, "c": 0}]
    monkeypatch.setattr("omnitune.distributed.parallel.gather", lambda value: found)
    with pytest.raises(SharedError) as error:
        require_agreement(found[0])
    assert "b: 2 (process 0) and 3 (process 1, 2)" in str(error.value)
    assert "a:" not in str(error.value)


def test_one_fails_all_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gather("x") == ["x"]
    with pytest.raises(SharedError, match="mine"), together():
        raise ValueError("mine")
    monkeypatch.setattr("omnitune.distributed.parallel.gather", lambda value: [value, "another's"])
    with pytest.raises(SharedError, match="another's"), together():
        pass
