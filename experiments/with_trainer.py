"""transformers' Trainer with the text, the checkpoint and the settings of one of our configs."""

from pathlib import Path

from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from mlmlab.config import RunConfig
from mlmlab.runs.setup import set_up


def train_with_trainer(config: RunConfig, export: Path) -> None:
    """Trains as the Hub's guide does, on the same examples, and saves the model; nothing where that
    has been done. The order of the examples, the masks and the dropout noise are Trainer's own."""
    if export.is_dir():
        return
    inputs, train, masking = set_up(config), config.train, config.masking
    assert config.checkpoint is not None
    assert train.max_steps is not None
    tokenizer = AutoTokenizer.from_pretrained(config.checkpoint)
    rows = [inputs.train.take([n]).input_ids[0].tolist() for n in range(len(inputs.train))]
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_pretrained(config.checkpoint),
        args=TrainingArguments(
            output_dir=str(export.parent),
            max_steps=train.max_steps,
            per_device_train_batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            adam_beta1=train.adam_beta1,
            adam_beta2=train.adam_beta2,
            adam_epsilon=train.adam_eps,
            max_grad_norm=train.max_grad_norm,
            lr_scheduler_type="linear",
            warmup_steps=round((train.warmup_fraction or 0) * train.max_steps),
            seed=config.seed,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=masking.rate),
    )
    trainer.train()
    trainer.save_model(str(export))
    tokenizer.save_pretrained(export)
