"""How strange pictures are to adapters, by hand and with weights really merged."""

import torch

from pipeline.base.protocol import Base
from pipeline.editing.strangeness import errors_under
from pipeline.evaluation.naturalness import picture_errors
from tests.editing.test_transfer import an_adapter

CAPTIONS = ["a red hill", "a blue lake", "a hill"]


def test_it_is_the_denoising_error_with_the_adapters_merged(tiny: Base) -> None:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    style = [(an_adapter(tiny, 3), 7.0), (an_adapter(tiny, 4), -2.0)]
    plain, under = (errors_under(tiny, pictures, CAPTIONS, adapters) for adapters in ([], style))
    assert torch.equal(plain, picture_errors(tiny, pictures, tiny.condition(CAPTIONS)))
    assert torch.allclose(under, errors_under(tiny, pictures, CAPTIONS, style, batch=2), rtol=1e-5)
    for adapter, weight in style:
        for name, (down, up) in adapter.factors.items():
            tiny.denoiser.get_submodule(name).weight.data += weight * adapter.scale * (up @ down)
    merged = picture_errors(tiny, pictures, tiny.condition(CAPTIONS))
    assert torch.allclose(under, merged, rtol=1e-4) and not torch.allclose(plain, merged, rtol=1e-3)
