"""The command `hone plan`: print the memory that a manifest's job needs."""

import logging
import os
import sys

from hone_api.io.terminal import print_line

from hone_trainer.inputs import manifest
from hone_trainer.memory import plan
from hone_trainer.runtime.options import PlanOptions


def print_plan(options: PlanOptions) -> None:
    """Print the memory that a manifest's job needs. Raises HoneError."""
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR)
    inputs = manifest.load_inputs(options)
    spec = inputs.job.spec
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if options.verbose else "error")
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type] # PEFT would import it, and take 4 s longer
    from hone_trainer.memory import architecture, render
    from hone_trainer.models import base_model, quantization

    base = base_model.locate_base_model(spec.model, inputs, None, needs_weights=False)
    config = base_model.load_config(base, spec.model)
    quantization.refuse_quantized(spec, base.location, config)
    found = plan.make_memory_plan(
        spec, architecture.build_meta_model(config, trust_remote_code=spec.model.trust_remote_code)
    )
    for note in found.notes:
        print_line(f"note: {note}")
    print_line(render.render_plan(found), file=sys.stdout)
