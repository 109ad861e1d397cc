"""Small files that editors write beside their tensors."""

import json
from pathlib import Path
from typing import Any


def write_adapter_config(folder: Path, config: dict[str, Any]) -> None:
    """`adapter_config.json`, so that PEFT can read the adapter without this study."""
    (folder / "adapter_config.json").write_text(
        json.dumps(config, indent=1, sort_keys=True), "utf-8"
    )
