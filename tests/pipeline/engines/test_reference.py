import numpy as np
import pytest

from pipeline.bundles.bundle import PROGRAM_NAME, REFERENCE_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.engines.reference import is_reference, open_reference
from pipeline.errors import BundleError
from tests.conftest import red_program, write_bundle


def with_reference(folder, **manifest):
    bundle = write_bundle(folder, red_program(), **{"precision": "fp16", **manifest})
    files = {PROGRAM_NAME: red_program(counts=True), REFERENCE_NAME: red_program()}
    return Bundle.write(folder, bundle.manifest, files)


def test_the_program_in_fp32_and_not_the_bundles_own(tmp_path):
    bundle = with_reference(tmp_path / "b")
    image = np.random.default_rng(0).integers(0, 255, (1, 20, 30, 3), dtype=np.uint8)
    with open_reference(bundle, aside=True) as engine, open_engine(bundle) as own:
        assert own.counts
        assert not engine.counts
        assert (engine(image) == image[..., 2]).all()
        assert engine.advice == ""  # it is in FP32
        assert not is_reference(own)


def test_of_a_bundle_in_fp32_its_own(red_bundle):
    with open_reference(red_bundle) as engine, open_engine(red_bundle) as own:
        assert is_reference(own)
        assert engine.bundle.folder == red_bundle.folder


def test_tiles(tmp_path):
    manifest = {"contract": {"name": "stream", "tile": [[16, 24], 4]}, "frame_size_hw": (16, 24)}
    image = np.random.default_rng(0).integers(0, 255, (1, 50, 70, 3), dtype=np.uint8)
    with open_reference(with_reference(tmp_path / "b", **manifest)) as engine:
        assert np.abs(engine(image).astype(int) - image[..., 2]).max() <= 1


def test_there_is_none(tmp_path):
    bundle = write_bundle(tmp_path / "b", precision="int8")
    with pytest.raises(
        BundleError, match=r"b: expected its program in FP32 beside the one in int8, got none: compile the "
    ):
        open_reference(bundle)


@pytest.mark.parametrize(("content", "said"), [(b"x", r"reference\.onnx: expected sha256 "), (None, "cannot be read")])
def test_a_file_that_was_changed_since(tmp_path, content, said):
    bundle = with_reference(tmp_path / "b")
    path = bundle.folder / REFERENCE_NAME
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match=said):
        open_reference(bundle)
