"""AV-Omni: driving clips to a fine-tuned vision-language model and a score to be believed."""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
