import sys

import pytest

from rome_jax.files import extras


@pytest.mark.parametrize("package", ["sklearn", "no_such_package"])
def test_a_missing_package_is_one_sentence(monkeypatch, package):
    if package == "sklearn":
        monkeypatch.setitem(sys.modules, package, None)
    name = {"sklearn": "scikit-learn"}.get(package, package)
    with pytest.raises(extras.MissingPackageError) as error:
        extras.check(package, "eval", "the figure")
    assert str(error.value) == f"the figure needs {name}: pip install 'rome_jax[eval]'."
    assert isinstance(error.value, ImportError) and isinstance(error.value, ValueError)


def test_what_is_installed_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    extras.check("this", "eval", "the figure")
    assert "this" not in sys.modules
