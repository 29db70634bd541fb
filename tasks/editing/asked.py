"""What a model is asked for while its images are edited: nothing, a prompt, or no prompt at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model

# Guidance 0 leaves the null condition alone, which is the empty prompt; conditions need a prompt to leave out.
UNPROMPTED = Conditions(prompts="unprompted", guidance=0.0)


def conditions_of(files: ModelFiles, prompt: str, guidance: float) -> Conditions:
    """Those of a model that takes prompts, of the empty one where there is none; nothing for any other."""
    if not files.text:
        return Conditions()
    return Conditions(prompts=prompt, guidance=guidance) if prompt else UNPROMPTED


def find_edited(subject: EditSubject) -> ModelFiles:
    """The subject's model. ConfigurationError or ModelError where it cannot be edited as the subject says."""
    files = find_model(subject.model)
    name = files.name
    if files.piped:
        raise ConfigurationError(
            f"model {name} is sampled by its whole pipeline: edits invert and move what goes through a network that is "
            "called alone (UNet2DModel, UNet2DConditionModel, DiT); images that it makes of prompts can fit a boundary "
            "for such a model: --text-model"
        )
    if files.shown:
        raise ConfigurationError(
            f"model {name} is shown images ({files.shown}): edits are for models that are shown none"
        )
    if files.classes is not None and files.null_label is None:
        raise ConfigurationError(
            f"model {name} must always be told a label: edits are made without one; if one of its labels means none, "
            'say which, as {"null_label": 9} in a fewstep.json in its folder'
        )
    if subject.source == "text" and not files.text:
        raise ConfigurationError(f"model {name} takes no prompts: use --source images or samples")
    if subject.source == "samples" and files.text:
        raise ConfigurationError(f"model {name} takes prompts: its samples are edited by --source text")
    if subject.prompt and not files.text:
        raise ConfigurationError(f"model {name} takes no prompts: leave --prompt out")
    if subject.guidance != 1 and not ((files.text and subject.prompt) or subject.text_model):
        raise ConfigurationError(
            f"guidance {subject.guidance:g} leads towards a prompt, and there is none: leave it out"
            + (", or give --prompt" if files.text else "")
        )
    if files.text and not subject.prompt and files.embeds_guidance:
        raise ConfigurationError(f"model {name} is told its guidance and so needs a prompt: give --prompt")
    return files


def check_guidance(schedule: SolverSchedule, conditions: Conditions) -> None:
    """ConfigurationError for a schedule with guidance of its own where no prompt says what to lead to."""
    if schedule.guidance is not None and (not conditions.prompt_list or conditions == UNPROMPTED):
        raise ConfigurationError(
            f"schedule {schedule.name or schedule.hash} guides by {schedule.guidance:g}, and no prompt says where to: "
            "give a way without guidance"
        )


def call_of(denoiser: Denoiser, indices: Sequence[int], schedule: SolverSchedule) -> Callable[[Tensor, float], Tensor]:
    """The denoiser for some images, guided and with skips as the schedule says."""
    check_guidance(schedule, denoiser.conditions)
    return denoiser.on(indices, schedule.guidance, schedule.skips)
