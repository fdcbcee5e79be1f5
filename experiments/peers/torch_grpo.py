"""The same step in plain PyTorch: transformers' generate, then a policy-gradient step in the same
layout as everywhere, [prompt | completion] for each candidate: python torch_grpo.py WORK.json

On a GPU where there is one, else on the CPU; weights, gradients and AdamW's moments in the work's
dtype, which is less than the others keep, and faster.
"""

from __future__ import annotations

import time
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from turns import Turns, rewards

turns = Turns()
work = turns.work
device = "cuda" if torch.cuda.is_available() else "cpu"
group, length, temperature = work["group_size"], work["completion_tokens"], work["temperature"]
tokenizer = PreTrainedTokenizerFast.from_pretrained(work["model"], padding_side="left")
model: Any = AutoModelForCausalLM.from_pretrained(
  work["model"], dtype=getattr(torch, work["dtype"]), attn_implementation="sdpa"
)
model = model.to(device)
if work["lora"]:
  model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **work["lora"]))
trained = [weight for weight in model.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=work["learning_rate"], fused=True)
options = {
  "do_sample": True,
  "temperature": temperature,
  "top_k": 0,
  "top_p": 1.0,
  "num_return_sequences": group,
  "max_new_tokens": length,
  "pad_token_id": tokenizer.pad_token_id,
}
if work["stop_ids"]:
  options["eos_token_id"] = work["stop_ids"]
else:
  options |= {"min_new_tokens": length, "eos_token_id": None}


def clock() -> float:
  if device == "cuda":
    torch.cuda.synchronize()
  return time.perf_counter()


def sample(texts: list[str]) -> tuple[torch.Tensor, ...]:
  """Rows [P * G, S + T], their attention mask, and the mask of the sampled tokens [P * G, T]."""
  inputs = tokenizer(texts, padding=True, return_tensors="pt").to(device)
  inputs.pop("token_type_ids", None)
  model.eval()
  with torch.inference_mode():
    rows = model.generate(**inputs, **options)
  rows = rows.clone()
  drawn = rows[:, inputs["input_ids"].shape[1] :]
  kept = torch.ones_like(drawn, dtype=torch.bool)
  for stop in work["stop_ids"]:  # up to and with the first stop token
    ended = (drawn == stop).cumsum(1) - (drawn == stop).long()
    kept &= ended == 0
  seen = inputs["attention_mask"].repeat_interleave(group, 0)
  return rows, torch.cat([seen, kept.long()], 1), kept


def train(rows: torch.Tensor, seen: torch.Tensor, kept: torch.Tensor, scores: list[float]) -> None:
  """One optimizer step, a micro-batch of whole groups at a time."""
  grouped = torch.tensor(scores, device=device).view(-1, group)
  spread = grouped - grouped.mean(1, keepdim=True)
  advantages = (spread / (grouped.std(1, keepdim=True) + 1e-4)).view(-1, 1)
  weights = kept / kept.sum(1, keepdim=True) / len(rows)
  model.train()
  size = group * (work["micro_batch_prompts"] or work["prompts"])
  new = kept.shape[1]
  for start in range(0, len(rows), size):
    piece = slice(start, start + size)
    positions = (seen[piece].cumsum(1) - 1).clamp(min=0)
    logits = model(
      input_ids=rows[piece],
      attention_mask=seen[piece],
      position_ids=positions,
      logits_to_keep=new + 1,
      use_cache=False,
    ).logits[:, :-1]
    logits = logits.float() / temperature
    picked = logits.gather(-1, rows[piece, -new:, None])[..., 0]
    logp = picked - logits.logsumexp(-1)
    ratio = torch.exp(logp - logp.detach())  # on-policy, so that nothing is clipped
    (-(weights[piece] * advantages[piece] * ratio).sum()).backward()
  torch.nn.utils.clip_grad_norm_(trained, 1.0)
  optimizer.step()
  optimizer.zero_grad(set_to_none=True)


turns.ready()
for number, texts in enumerate(work["steps"]):
  turns.wait()
  began = clock()
  rows, seen, kept = sample(texts)
  sampled = clock()
  drawn = [row[mask] for row, mask in zip(rows[:, -kept.shape[1] :], kept, strict=True)]
  answers = tokenizer.batch_decode(drawn, skip_special_tokens=True)
  wanted = work["wanted"] and [text for text in work["wanted"][number] for _ in range(group)]
  scores = rewards(answers, wanted)
  scored = clock()
  train(rows, seen, kept, scores)
  peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
  turns.done(sampled - began, clock() - scored, int(kept.sum()), peak)
