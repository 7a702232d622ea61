"""The race that ends a search, in memory."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from datasets import Dataset
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import TrainingArguments

from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import invalid
from glora_search.finals.choice import choose
from glora_search.finals.contest import NOBODY_RACES, Contest
from glora_search.finals.finalists import Finalist, Subnet, distinct
from glora_search.finals.lessons import Lesson
from glora_search.finals.race import STUDY_NAME
from glora_search.find.found import FoundAdapter
from glora_search.recipe.arguments import EVALUATED
from glora_search.recipe.schema import Finals
from glora_search.scoring import evaluate
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.search.trials import LOSS, PARAMS, best_trial, trial_key
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.tuners.heads import bare


def race_of(
    supernet: Any,
    evaluator: SubnetEvaluator,
    study: optuna.Study,
    rows: tuple[Dataset, Dataset],
    args: TrainingArguments,
    settings: Finals,
    budgets: tuple[int | None, int | None],
    lr_factors: Mapping[str, float],
) -> FoundAdapter:
    """End a search in a race; the winner, at its best checkpoint, is what was found.

    Args:
        rows: to learn from, and to validate on.
        budgets: of the adapter, and of the subnets that teach.
    """
    (train, validation), (max_params, largest) = rows, budgets
    space, scoring, batches = supernet.space, evaluator.scoring, evaluator.batches
    config = supernet.peft_config[supernet.active_adapter]
    trials = sorted(
        (trial for trial in study.get_trials(deepcopy=False) if trial.values),
        key=lambda trial: trial_key(trial, study.directions[0]),
    )
    scored = (Subnet(trial.params, int(trial.user_attrs[PARAMS]), float(trial.user_attrs[LOSS])) for trial in trials)
    subnets = distinct(scored, space, settings.subnets)
    inherited = {str(subnet.genome): evaluator.inherit(subnet.genome) for subnet in subnets}
    best = best_trial(study).params
    inherited_best = inherited.get(str(best)) or evaluator.inherit(best)
    lesson = None
    if settings.teacher:
        members = draw_members(space, count=settings.teacher, max_params=largest, seed=args.seed)
        teacher = Teacher(supernet, members, scoring, evaluator.batch_size)
        lesson = Lesson.of(teacher, "supernet", len(members), train, validation, None)
    current: list[PeftModel] = [supernet]

    def made(model: PeftModel) -> None:
        current[0] = model

    def start(one: Finalist, base: Any) -> PeftModel:
        # peft adds the head that it knows to the config that it is given, each time.
        model = get_peft_model(base, copy.deepcopy(inherited[str(one.genome)].config))
        set_peft_model_state_dict(model, inherited[str(one.genome)].weights)
        return model

    def load(checkpoint: Path) -> PeftModel:
        model = load_adapter(bare(current[0]), checkpoint)
        made(model)
        return model

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finals-", dir=args.output_dir) as folder:
        contest = Contest(
            space=space,
            subnets=subnets,
            scoring=scoring,
            train=train,
            validation=validation,
            unlabelled=lambda: None,
            lesson=lesson,
            args=dataclasses.replace(args, **EVALUATED),
            folder=Path(folder),
            settings=settings,
            max_params=max_params,
            base=lambda: bare(current[0]),
            load=load,
            inherit=start,
            made=made,
            lr_factors=lr_factors,
            task_type=config.task_type,
            modules_to_save=config.modules_to_save or (),
            batch_size=evaluator.batch_size,
        )
        if not contest.subnets and not contest.uniform:
            raise invalid("max_params", max_params, NOBODY_RACES)
        outcome = choose(contest, contest.run(optuna.create_study(study_name=STUDY_NAME)))
        winner = outcome.named(outcome.winner)
        if not outcome.finite(winner.name):
            raise invalid("retrain_args.learning_rate", args.learning_rate, "a lower one: every finalist has diverged")
        model = load_adapter(bare(current[0]), contest.best(winner, outcome.result), trainable=True)
    return FoundAdapter(
        model.eval(),
        model.peft_config[model.active_adapter],
        winner.genome,
        adapter_params(model),
        evaluate(model, batches, scoring),
        inherited_best.evaluation,
        study,
        outcome.table(),
        outcome.baseline,
        outcome.passed_over,
    )
