"""TRL's GRPOTrainer on the benchmark's workload: python trl_grpo.py WORK.json"""

import itertools

import peft
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns, rewards

turns = Turns()
work = turns.work
group, length = work["group_size"], work["completion_tokens"]
half = work["dtype"] == "bfloat16"
config = GRPOConfig(
  output_dir=work["out"],
  use_cpu=True,
  bf16=half,
  model_init_kwargs={"dtype": work["dtype"]},
  # A micro-batch of one group was the fastest of those tried.
  per_device_train_batch_size=group,
  gradient_accumulation_steps=work["prompts"],
  num_generations=group,
  max_completion_length=length,
  generation_kwargs={} if work["stop_ids"] else {"min_new_tokens": length},
  temperature=work["temperature"],
  beta=0.0,
  learning_rate=work["learning_rate"],
  gradient_checkpointing=False,
  max_steps=len(work["steps"]),
  shuffle_dataset=False,  # each step has its own prompts, as everywhere
  logging_steps=10**6,
  save_strategy="no",
  report_to="none",
  disable_tqdm=True,
)
columns = {"prompt": list(itertools.chain(*work["steps"]))}
if work["wanted"]:
  columns["wanted"] = list(itertools.chain(*work["wanted"]))
trainer = GRPOTrainer(
  work["model"],
  reward_funcs=rewards,
  args=config,
  train_dataset=Dataset.from_dict(columns),
  peft_config=peft.LoraConfig(task_type="CAUSAL_LM", **work["lora"]) if work["lora"] else None,
  # Not AutoTokenizer: it makes a Qwen2 tokenizer of the folder, which returns no ids.
  processing_class=PreTrainedTokenizerFast.from_pretrained(work["model"]),
)


class TakeTurns(TrainerCallback):
  def on_step_begin(self, *args, **kwargs):
    turns.wait()

  def on_step_end(self, *args, **kwargs):
    turns.trained()


trainer._generate_single_turn = turns.timed(
  "sample", trainer._generate_single_turn, lambda out: sum(map(len, out[0]))
)
trainer._generate_and_score_completions = turns.timed(
  "score", trainer._generate_and_score_completions
)
trainer.add_callback(TakeTurns())
turns.ready()
trainer.train()
