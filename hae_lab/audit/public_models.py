"""Ten public architectures, small in code and full in size, to hold our counts against torch's and the published ones.

Written after the papers in their docstrings; classifiers end in 1,000 classes. `PUBLISHED` holds parameters, and GMACs
where the source tells them: of torchvision's weights (0.29: `num_params`, and `_ops`, which it calls GFLOPS), of timm's
model cards, and of the papers. All are independent of this package.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGE = (1, 3, 224, 224)


class Published(NamedTuple):
    """A builder, the shape of its input, and what others say of it; a step is what their number is rounded to."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    source: str
    params: int
    gmacs: float = nan
    params_step: int = 1
    gmacs_step: float = 0.001


class Residual(nn.Module):
    """x + f(x), or skip(x) + f(x), then an activation."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.last = body, skip or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.skip(x) + self.body(x))


class Swap(nn.Module):
    """Exchange two dimensions."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(self.first, self.second)


class Mean(nn.Module):
    """The mean over one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim)


def _conv_norm(c_in: int, c_out: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, side, stride, side // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


def _head(channels: int, *before: nn.Module) -> list[nn.Module]:
    return [*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


def resnet50() -> nn.Module:
    """He et al. 2016, the stride in the 3 x 3 convolution."""
    layers = [*_conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(blocks):
            stride = 2 if index == 0 and width > 64 else 1
            body = [*_conv_norm(channels, width, 1), nn.ReLU(), *_conv_norm(width, width, 3, stride), nn.ReLU()]
            skip = nn.Sequential(*_conv_norm(channels, 4 * width, 1, stride)) if index == 0 else None
            layers.append(Residual(nn.Sequential(*body, *_conv_norm(width, 4 * width, 1)), skip, nn.ReLU()))
            channels = 4 * width
    return nn.Sequential(*layers, *_head(channels))


def vgg16() -> nn.Module:
    """Simonyan & Zisserman 2015."""
    layers, channels = [], 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    classifier = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *classifier, nn.Linear(4096, 1000))


class DenseLayer(nn.Module):
    """A layer that sees all maps before it, and adds 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def densenet121() -> nn.Module:
    """Huang et al. 2017."""
    layers, channels = [*_conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for count in (6, 12, 24, 16):
        for _ in range(count):
            layers.append(DenseLayer(channels))
            channels += 32
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if count != 16:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, *_head(channels))


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018: depthwise convolutions between narrow maps."""
    layers, channels = [*_conv_norm(3, 32, 3, 2), nn.ReLU6()], 32
    for expansion, width, count, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(count):
            hidden, stride = channels * expansion, first_stride if index == 0 else 1
            body = [*_conv_norm(channels, hidden, 1), nn.ReLU6()] if expansion > 1 else []
            body += [*_conv_norm(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_conv_norm(hidden, width, 1)]
            block = nn.Sequential(*body)
            layers.append(Residual(block) if stride == 1 and channels == width else block)
            channels = width
    return nn.Sequential(*layers, *_conv_norm(channels, 1280, 1), nn.ReLU6(), *_head(1280))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Channelwise(nn.Sequential):
    """Layers over the last dimension, for the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext_tiny() -> nn.Module:
    """Liu et al. 2022."""
    layers, channels = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96)], 96
    for width, count in ((96, 3), (192, 3), (384, 9), (768, 3)):
        if width > channels:
            layers += [ChannelNorm(channels), nn.Conv2d(channels, width, 2, 2)]
            channels = width
        for _ in range(count):
            mlp = Channelwise(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            layers.append(Residual(nn.Sequential(depthwise, mlp, LayerScale(width))))
    pooled = [nn.AdaptiveAvgPool2d(1), ChannelNorm(channels), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers, *pooled)


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021: patches as words, a class token in front."""

    def __init__(self, side: int = 224, patch: int = 16, width: int = 768, heads: int = 12, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT  # (B, patches, width)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens + self.positions)[:, 0])


def mlp_mixer_b16() -> nn.Module:
    """Tolstikhin et al. 2021: MLPs over the patches, then over the channels."""

    def mlp(width: int, hidden: int) -> list[nn.Module]:
        return [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)]

    layers: list[nn.Module] = [nn.Conv2d(3, 768, 16, 16), nn.Flatten(2), Swap(1, 2)]
    for _ in range(12):
        over_patches = nn.Sequential(nn.LayerNorm(768), Swap(1, 2), *mlp(196, 384), Swap(1, 2))
        layers += [Residual(over_patches), Residual(nn.Sequential(nn.LayerNorm(768), *mlp(768, 3072)))]
    pooled = [nn.LayerNorm(768), Mean(1), nn.Linear(768, 1000)]
    return nn.Sequential(*layers, *pooled)


def r3d_18() -> nn.Module:
    """Tran et al. 2018: a residual network over 16 frames."""

    def conv_norm(c_in: int, c_out: int, stride: int = 1, side: int = 3) -> list[nn.Module]:
        return [nn.Conv3d(c_in, c_out, side, stride, side // 2, bias=False), nn.BatchNorm3d(c_out)]

    stem = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    layers, channels = [stem, nn.BatchNorm3d(64), nn.ReLU()], 64
    for width in (64, 128, 256, 512):
        for index in range(2):
            stride = 2 if index == 0 and width > 64 else 1
            body = nn.Sequential(*conv_norm(channels, width, stride), nn.ReLU(), *conv_norm(width, width))
            skip = nn.Sequential(*conv_norm(channels, width, stride, 1)) if channels != width else None
            layers.append(Residual(body, skip, nn.ReLU()))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(512, 400))


def bert_base_encoder() -> nn.Module:
    """Devlin et al. 2019: the 12 layers of BERT-base, without embeddings and pooler, on 512 vectors."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


class Denoiser(nn.Module):
    """diffusers' UNet2DModel with the settings of google/ddpm-cifar10-32 (Ho et al. 2020); it puts out a tensor."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=32, in_channels=3, out_channels=3, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, attention_head_dim=None, norm_eps=1e-6,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x, torch.zeros(len(x), device=x.device), return_dict=False)[0]


TORCHVISION, CARD = "torchvision 0.29", "timm's model card"
PUBLISHED: dict[str, Published] = OrderedDict(
    {
        "ResNet-50": Published(resnet50, IMAGE, TORCHVISION, 25_557_032, 4.089),
        "VGG-16": Published(vgg16, IMAGE, TORCHVISION, 138_357_544, 15.470),
        "DenseNet-121": Published(densenet121, IMAGE, TORCHVISION, 7_978_856, 2.834),
        "MobileNetV2": Published(mobilenet_v2, IMAGE, TORCHVISION, 3_504_872, 0.301),
        "ConvNeXt-T": Published(convnext_tiny, IMAGE, TORCHVISION, 28_589_128, 4.456),
        "ViT-B/16": Published(VisionTransformer, IMAGE, TORCHVISION, 86_567_656, 17.564),
        "R3D-18": Published(r3d_18, (1, 3, 16, 112, 112), TORCHVISION, 33_371_472, 40.697),
        "MLP-Mixer-B/16": Published(mlp_mixer_b16, IMAGE, CARD, 59_900_000, 12.6, 100_000, 0.1),
        # a layer of width d has 12 d² + 13 d parameters: four projections, a MLP four times as wide, biases, two norms
        "BERT-base, encoder": Published(bert_base_encoder, (1, 512, 768), "its sizes", 12 * (12 * 768**2 + 13 * 768)),
        "DDPM, CIFAR-10": Published(Denoiser, (1, 3, 32, 32), "its paper", 35_700_000, params_step=100_000),
    }
)
