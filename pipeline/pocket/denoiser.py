"""Training the pocket's UNet and text encoder together on encoded paintings."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.pocket.layout import build_scheduler, build_text_encoder, build_unet
from pipeline.pocket.optimizers import muon_and_adamw
from pipeline.pocket.paintings import Captioned
from pipeline.pocket.progress import LogMetrics, Training, batches
from pipeline.sections import PocketSection

Preview = Callable[[UNet2DConditionModel, CLIPTextModel, int], None]

# Where most timesteps are drawn, in the log of noise over signal: there shapes and edges are decided. Above, a picture
# has nothing but its caption to go by, and the loss is mostly what nobody can know.
DENSE_CENTRE, DENSE_WIDTH = 0.1, 1.4
UNIFORM_SHARE = 0.25


class CaptionedDenoiser(nn.Module):
    """The UNet and its text encoder, trained as one."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def embed(self, tokens: torch.Tensor, pairs: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        """Mixed caption embeddings (B, 64, 128).

        tokens: (K, 64), the captions without repeats; pairs: (B, 2), which two of them a sample lies between;
        mix: (B,), how far it is on the way from the first to the second.
        """
        embeddings = self.text_encoder(tokens).last_hidden_state
        return torch.lerp(embeddings[pairs[:, 0]], embeddings[pairs[:, 1]], mix.view(-1, 1, 1).to(embeddings))


def train_denoiser(
    latents: torch.Tensor,
    captions: Sequence[Captioned],
    tokenizer: CLIPTokenizer,
    settings: PocketSection,
    work: Path,
    device: torch.device,
    log: LogMetrics,
    preview: Preview = lambda unet, text_encoder, step: None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """A v-predicting UNet and its text encoder from posteriors (N, 2, 16, 16, 16) and their captions.

    A picture between two captions is learned on the same mixture of their embeddings, so that halfway in caption
    space looks like halfway. A share of the samples has the empty caption, so that classifier-free guidance works
    (Ho and Salimans 2022). `preview` is called now and then with the averaged models.
    """
    torch.manual_seed(settings.seed + 1)
    model = CaptionedDenoiser(build_unet(), build_text_encoder(tokenizer))
    if settings.init_from:
        earlier_unet = UNet2DConditionModel.from_pretrained(settings.init_from, subfolder="unet")
        take_weights(model.unet, earlier_unet)
        earlier_text = CLIPTextModel.from_pretrained(settings.init_from, subfolder="text_encoder")
        model.text_encoder.load_state_dict(earlier_text.state_dict())
    model.to(device)
    model.unet.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        # The backward pass of torch's fused attention takes a third of a step there.
        model.unet.set_attn_processor(AttnProcessor())
    optimizers = muon_and_adamw(model, settings.unet_rate, settings.unet_rate / 2)
    training = Training(model, optimizers, settings.unet_steps, settings.ema, work / "denoiser.pt")
    scheduler = build_scheduler()
    alphas_cumprod = scheduler.alphas_cumprod
    indices = list(batches(len(latents), settings.unet_batch, settings.unet_steps, settings.seed + 1))
    texts = ["", *sorted({text for item in captions for text in (item.first, item.second)})]
    number = {text: place for place, text in enumerate(texts)}
    all_tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    all_pairs = torch.tensor([[number[item.first], number[item.second]] for item in captions])
    all_mixes = torch.tensor([item.mix for item in captions])

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        chosen = indices[step]
        mean, std = latents[chosen].float().unbind(1)
        clean = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        timesteps = draw_timesteps(len(chosen), alphas_cumprod, generator)
        keep = torch.rand(len(chosen), 1, generator=generator) >= settings.caption_dropout
        pairs = torch.where(keep, all_pairs[chosen], 0)
        used, pairs = torch.unique(pairs, return_inverse=True)
        signal = alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
        scale = (1 - alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
        noisy, target = signal * clean + scale * noise, signal * noise - scale * clean
        with torch.autocast(device.type, torch.bfloat16):
            captions_now = model.embed(all_tokens[used].to(device), pairs.to(device), all_mixes[chosen].to(device))
            noisy = noisy.to(device, memory_format=torch.channels_last)
            predicted = model.unet(noisy, timesteps.to(device), captions_now, return_dict=False)[0]
        return F.mse_loss(predicted.float(), target.to(device))

    training.run(loss_at, log, "denoiser", lambda step: preview(model.unet, model.text_encoder, step))
    training.use_average()
    model.unet.set_default_attn_processor()
    return model.unet.eval(), model.text_encoder.eval()


def take_weights(unet: UNet2DConditionModel, earlier: UNet2DConditionModel) -> None:
    """The weights of an earlier UNet, but for its first and last layers where latents had other channels.

    Raises ValueError where any other layer differs.
    """
    own, found = unet.state_dict(), earlier.state_dict()
    other = {name for name in own if name not in found or found[name].shape != own[name].shape}
    inner = sorted(name for name in other if not name.startswith(("conv_in.", "conv_out.")))
    if inner:
        raise ValueError(f"the earlier UNet has another layout: {', '.join(inner[:4])}")
    unet.load_state_dict({name: own[name] if name in other else found[name] for name in own})


def draw_timesteps(
    count: int,
    alphas_cumprod: torch.Tensor,
    generator: torch.Generator,
    centre: float = DENSE_CENTRE,
    width: float = DENSE_WIDTH,
    uniform_share: float = UNIFORM_SHARE,
) -> torch.Tensor:
    """Timesteps (count,), a share uniform, the others where the log of noise over signal is normally distributed.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1, in units of data
    of unit variance.
    """
    log_ratio = 0.5 * ((1 - alphas_cumprod).log() - alphas_cumprod.clamp(min=1e-12).log())
    wanted = centre + width * torch.randn(count, generator=generator)
    dense = torch.searchsorted(log_ratio, wanted).clamp(max=len(log_ratio) - 1)
    uniform = torch.randint(len(log_ratio), (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < uniform_share, uniform, dense)
