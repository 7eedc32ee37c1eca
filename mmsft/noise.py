"""Keeps what libraries print while they load models off the terminal."""

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Turns off the bars and warnings of libraries; what matters to a user mmsft says itself."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    warnings.simplefilter("ignore")
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
