"""A small vision transformer: an image is a sequence of patches behind one class token."""

from typing import Any

import torch
from torch import Tensor, nn

from kktorch.nn._classifier_inputs import set_standardisation
from kktorch.nn._option_checks import check_positive
from kktorch.nn.encoder import Encoder, EncoderOptions
from kktorch.nn.token_norm import TokenNorm


class SmallViT(nn.Module):
    """Images x [B, C, height, width] to logits [B, K], with P patches in row-major order::

        h = encoder([class_token, embedding(patches of (x - input_mean) / input_std)])
        logits = head(norm(h of the class token))

    The class token is a special token of the attention: scaled heads do not pool it, convolutions
    pass it by. The windows of scaled heads run along the rows of patches.

    Args:
        image_height: a multiple of ``patch``.
        image_width: a multiple of ``patch``.
        classes: K.
        image_channels: C.
        patch: height and width of a patch.
        encoder: keyword arguments of :class:`EncoderOptions`; ``norm`` is "layer" and
            ``norm_first`` True by default.

    Parameters: embedding (Linear C patch^2 -> width; a patch is laid out [C, patch, patch], as the
    weight of a strided convolution), class_token [width], initially uniform in [-0.02, 0.02],
    encoder (:class:`Encoder`, with 1 + P learned positions), norm (:class:`TokenNorm` "layer"),
    head (Linear width -> K). Buffers: input_mean, input_std [C], so that a saved model takes raw
    images; 0 and 1 until :meth:`standardise_with` is called. Initial values are those of
    ``torch.nn`` and :class:`Encoder` where nothing else is said, drawn in this order. A seed gives
    the same model in C++ and in Python.

    Raises:
        ValueError: "SmallViT: expected <option>, but got <value>".
    """

    def __init__(
        self,
        image_height: int,
        image_width: int,
        classes: int,
        *,
        image_channels: int = 1,
        patch: int = 1,
        **encoder: Any,
    ) -> None:
        super().__init__()
        options = EncoderOptions(**{"norm": "layer", "norm_first": True, **encoder})
        expected = "SmallViT: expected "
        check_positive(expected + "image_height", image_height)
        check_positive(expected + "image_width", image_width)
        check_positive(expected + "image_channels", image_channels)
        check_positive(expected + "patch", patch)
        check_positive(expected + "classes", classes)
        check_positive(expected + "width", options.width)
        if image_height % patch or image_width % patch:
            raise ValueError(
                f"{expected}image_height and image_width divisible by patch, "
                f"but got {image_height}, {image_width} and {patch}"
            )
        self.image_shape = [image_channels, image_height, image_width]
        self.patch = patch
        self.rows, self.columns = image_height // patch, image_width // patch
        self.register_buffer("input_mean", torch.zeros(image_channels))
        self.register_buffer("input_std", torch.ones(image_channels))
        self.embedding = nn.Linear(image_channels * patch * patch, options.width)
        self.class_token = nn.Parameter(torch.empty(options.width).uniform_(-0.02, 0.02))
        self.encoder = Encoder(
            options, 1 + self.rows * self.columns, num_special=1, conv_columns=self.columns
        )
        self.norm = TokenNorm("layer", options.width)
        self.head = nn.Linear(options.width, classes)

    @torch.jit.unused
    def standardise_with(self, mean: Tensor, std: Tensor) -> None:
        """Sets input_mean and input_std to the statistics [C] of the training set's pixels.

        A channel with standard deviation 0 is centred only.
        """
        set_standardisation("SmallViT", mean, std, self.input_mean, self.input_std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K].

        Args:
            images: [B, C, height, width] floating, raw (not standardised).

        Raises:
            RuntimeError: "SmallViT: expected <what>, but got <values>".
        """
        shape = list(images.shape)
        if len(shape) != 4 or not images.is_floating_point() or shape[1:] != self.image_shape:
            channels, height, width = self.image_shape
            raise RuntimeError(
                f"SmallViT: expected images floating [B, {channels}, {height}, {width}], "
                f"but got {images.dtype} {shape}"
            )
        x = images.to(self.input_mean.dtype) - self.input_mean.view(-1, 1, 1)
        tokens = self.embedding(self._patches(x / self.input_std.view(-1, 1, 1)))
        first = self.class_token.expand(tokens.size(0), 1, -1)
        h = self.encoder(torch.cat([first, tokens], 1))
        return self.head(self.norm(h[:, 0]))

    def _patches(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] to patches [B, P, C patch^2], row by row."""
        blocks = images.unflatten(2, [self.rows, self.patch])
        blocks = blocks.unflatten(4, [self.columns, self.patch])
        return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
