import pytest
import torch
from interpreter import OWNERS, SEARCHING, patch_builtin
from triton.runtime import interpreter


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is interpreted where there is a GPU")
@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_known_builtins_are_those_that_the_interpreter_would_find(owner):
    def changes(patch):
        scope = interpreter._LangPatchScope()
        patch(owner, interpreter.interpreter_builder, scope)
        changed = list(scope._changes)
        scope.restore()
        return changed

    assert interpreter._patch_builtin is patch_builtin
    assert changes(patch_builtin) == changes(SEARCHING)
