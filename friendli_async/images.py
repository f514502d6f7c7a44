"""Images: a model paints from words, or changes an image.

Wire: ``POST {deployment}/v1/images/generations`` and ``.../edits``, for dedicated endpoints and containers; JSON both
ways, images in it as URLs or base64. The two deployments answer differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, ExtraOptions, Parameters, without_none
from friendli_async._core.body.sources import Content
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.errors import ResponseDecodeError
from friendli_async.media import encoded
from friendli_async.replies import Reply, Value

__all__ = ["ContainerEditOptions", "ContainerImage", "GeneratedImage", "GeneratedImages", "ImageInput"]
__all__ += ["ContainerGenerationOptions", "ContainerImages", "EditOptions", "GenerationOptions", "Images"]

ImageInput = str | Content | Mapping[str, object]
"""An image: its URL or its base64 text (a string is sent as it is), path, bytes, an open binary file, an async iterator
of bytes, or ``{"image": text}`` as the wire has it."""

# --- what comes out --------------------------------------------------------------------------------------------------


class GeneratedImage(Value, frozen=True):
    """One image: where it is, or what it is."""

    seed: int | None = None
    response_format: Literal["url", "raw", "png", "jpeg", "jpg"] | str | None = None  # open
    url: str | None = None
    b64_json: str | None = None
    """The image in base64."""

    def content(self) -> bytes:
        """The image itself, decoded.

        Raises:
            ResponseDecodeError: There is none (the format was ``url``), or it is not base64.
        """
        return _decoded(self.b64_json)


class GeneratedImages(Reply, frozen=True, kw_only=True):
    """The images that a dedicated endpoint made."""

    data: tuple[GeneratedImage, ...]


class ContainerImage(Reply, frozen=True, kw_only=True):
    """The image that a container made."""

    image: str
    """The image in base64."""

    def content(self) -> bytes:
        """The image itself, decoded.

        Raises:
            ResponseDecodeError: It is not base64.
        """
        return _decoded(self.image)


def _decoded(text: str | None) -> bytes:
    if text is None:
        raise ResponseDecodeError("the reply holds no image, only its URL")
    from base64 import b64decode

    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise ResponseDecodeError("the image in the reply is not base64", excerpt=text[:200]) from None


# --- what goes in ----------------------------------------------------------------------------------------------------


@described
class ContainerEditOptions(ExtraOptions, total=False):
    """Optional parameters of an edit in a container. What is left out is left to the server; None is sent as null."""

    num_inference_steps: int
    """Steps of the diffusion; more take longer."""
    guidance_scale: float
    """How closely to follow the prompt."""
    seed: int | None
    """Seed of the noise."""
    response_format: Literal["raw", "jpeg"] | str | None  # open
    """Format of the image."""


@described
class ContainerGenerationOptions(ContainerEditOptions, total=False):
    """Optional parameters of an image of a container. What is left out is left to the server; None is null."""

    control_images: Sequence[ImageInput] | None
    """Images that guide the composition (ControlNet)."""
    controlnet_weights: Sequence[float] | None
    """How much each of them counts."""


@described
class EditOptions(ExtraOptions, total=False):
    """Optional parameters of an edit. What is left out is left to the server; None is sent as null."""

    num_inference_steps: int
    """Steps of the diffusion; more take longer."""
    guidance_scale: float | None
    """How closely to follow the prompt."""
    seed: int | None
    """Seed of the noise."""
    response_format: Literal["url", "raw", "png", "jpeg", "jpg"] | str | None  # open
    """Where the image comes: a URL, or base64 in this format."""


@described
class GenerationOptions(EditOptions, total=False):
    """Optional parameters of an image. What is left out is left to the server; None is sent as null."""

    control_images: Sequence[ImageInput] | None
    """Images that guide the composition (ControlNet)."""
    controlnet_weights: Sequence[float] | None
    """How much each of them counts."""


class _ImageInput(msgspec.Struct):
    image: str


_GENERATED: Final[dict[str, Any]] = {"model": str, "prompt": str}
_EDITED: Final[dict[str, Any]] = {**_GENERATED, "image": _ImageInput | list[_ImageInput]}
_CONTROL: Final[dict[str, Any]] = {"control_images": list[_ImageInput] | None}
_GENERATE_PARAMETERS: Final = Parameters(GenerationOptions, _GENERATED, _CONTROL)
_EDIT_PARAMETERS: Final = Parameters(EditOptions, _EDITED, {})
_CONTAINER_GENERATE_PARAMETERS: Final = Parameters(ContainerGenerationOptions, _GENERATED, _CONTROL)
_CONTAINER_EDIT_PARAMETERS: Final = Parameters(ContainerEditOptions, _EDITED, {})

_GENERATE: Final = operation(
    "image.generate", "POST /v1/images/generations", GeneratedImages, repeatable=True, billed=True
)
_EDIT: Final = operation("image.edit", "POST /v1/images/edits", GeneratedImages, repeatable=True, billed=True)
_CONTAINER_GENERATE: Final = operation(
    "image.generate", "POST /v1/images/generations", ContainerImage, repeatable=True, billed=True
)
_CONTAINER_EDIT: Final = operation("image.edit", "POST /v1/images/edits", ContainerImage, repeatable=True, billed=True)


async def _arguments(
    parameters: Parameters, method: str, required: Mapping[str, object], options: Mapping[str, object]
) -> Arguments:
    """Reads the images, once everything else has been found to be in order."""
    control = options.get("control_images")
    others = {name: value for name, value in options.items() if name != "control_images"}
    parameters.take(method, {name: value for name, value in required.items() if name != "image"}, others)
    required, options = dict(required), dict(options)
    if "image" in required:
        required["image"] = await _read(required["image"], "image")
    if control is not None:
        options["control_images"] = await _read(control, "control_images")
    return parameters.encode(method, required, options)


async def _read(given: object, label: str) -> object:
    """One image, or a list of them, as the wire has it."""
    if isinstance(given, str | bytes | bytearray | memoryview) or not isinstance(given, Sequence):
        return await _read_one(given, label)  # pyright: ignore[reportUnknownArgumentType]  # whatever it is
    items = cast("Sequence[object]", given)
    return [await _read_one(item, f"{label}[{index}]") for index, item in enumerate(items)]


async def _read_one(given: object, label: str) -> object:
    if isinstance(given, Mapping):
        return cast("Mapping[str, object]", given)  # for the check to judge
    return {"image": given if isinstance(given, str) else await encoded(cast("Content", given), label)}


# --- the resources ---------------------------------------------------------------------------------------------------


class Images(Resource):
    """Images of your endpoints: ``client.dedicated.image``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        OSError: A file cannot be read. Nothing was sent.
    """

    async def generate(self, *, model: str, prompt: str, **options: Unpack[GenerationOptions]) -> GeneratedImages:
        """Paints what a text says.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            prompt: What the image shall show.
            options: See ``GenerationOptions``.

        Returns:
            The images: ``data[i].url``, or ``data[i].content()``; and ``meta``.
        """
        required = {"model": model, "prompt": prompt}
        arguments = await _arguments(_GENERATE_PARAMETERS, "generate", required, options)
        return await self._engine.call(_GENERATE, arguments)

    async def edit(
        self, *, model: str, image: ImageInput | Sequence[ImageInput], prompt: str, **options: Unpack[EditOptions]
    ) -> GeneratedImages:
        """Changes an image as a text says.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            image: The image, or several; see ``ImageInput``. Files are read whole, at most 32 MiB each.
            prompt: What to change.
            options: See ``EditOptions``.

        Returns:
            The images: ``data[i].url``, or ``data[i].content()``; and ``meta``.
        """
        required = {"model": model, "image": image, "prompt": prompt}
        return await self._engine.call(_EDIT, await _arguments(_EDIT_PARAMETERS, "edit", required, options))


class ContainerImages(Resource):
    """Images of a self-hosted engine, which has its model: ``client.container.image``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        OSError: A file cannot be read. Nothing was sent.
    """

    async def generate(
        self, *, model: str | None = None, prompt: str, **options: Unpack[ContainerGenerationOptions]
    ) -> ContainerImage:
        """Paints what a text says.

        Args:
            model: Route of an adapter; left out where None.
            prompt: What the image shall show.
            options: See ``ContainerGenerationOptions``.

        Returns:
            The image: ``content()``, ``meta``.
        """
        required = {**without_none(model=model), "prompt": prompt}
        arguments = await _arguments(_CONTAINER_GENERATE_PARAMETERS, "generate", required, options)
        return await self._engine.call(_CONTAINER_GENERATE, arguments)

    async def edit(
        self,
        *,
        model: str | None = None,
        image: ImageInput | Sequence[ImageInput],
        prompt: str,
        **options: Unpack[ContainerEditOptions],
    ) -> ContainerImage:
        """Changes an image as a text says.

        Args:
            model: Route of an adapter; left out where None.
            image: The image, or several; see ``ImageInput``. Files are read whole, at most 32 MiB each.
            prompt: What to change.
            options: See ``ContainerEditOptions``.

        Returns:
            The image: ``content()``, ``meta``.
        """
        required = {**without_none(model=model), "image": image, "prompt": prompt}
        arguments = await _arguments(_CONTAINER_EDIT_PARAMETERS, "edit", required, options)
        return await self._engine.call(_CONTAINER_EDIT, arguments)
