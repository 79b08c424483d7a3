"""Trains a small BERT on the sentences and writes it as Hugging Face does: ``my_model`` and ``my_tokenizer``."""

from __future__ import annotations

from pathlib import Path

import torch
from sentences import Sentence, sentences
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

EPOCHS = 8
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(known: list[Sentence]) -> BertTokenizer:
    """A tokenizer whose vocabulary is the words of the sentences."""
    words = sorted({word for sentence in known for word in sentence.text.split()})
    Path("vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    return BertTokenizer("vocab.txt", model_max_length=32)


def train(tokenizer: BertTokenizer, known: list[Sentence]) -> BertForSequenceClassification:
    """A model that has seen the sentences some times."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=32,
            num_labels=3,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(known)).split(32):
            chosen = [known[int(index)] for index in batch]
            inputs = tokenizer([sentence.text for sentence in chosen], padding=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor([sentence.label for sentence in chosen])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def accuracy(tokenizer: BertTokenizer, model: BertForSequenceClassification, asked: list[Sentence]) -> float:
    """Share of the sentences that the model labels right."""
    inputs = tokenizer([sentence.text for sentence in asked], padding=True, return_tensors="pt")
    with torch.inference_mode():
        guesses = model(**inputs).logits.argmax(dim=1).tolist()
    return sum(guess == sentence.label for guess, sentence in zip(guesses, asked, strict=True)) / len(asked)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    everything = sentences()
    held_out, known = everything[:200], everything[200:]
    tokenizer = make_tokenizer(known)
    model = train(tokenizer, known)
    share = accuracy(tokenizer, model, held_out)
    print(f"Trained on {len(known)} sentences; {share:.1%} of {len(held_out)} others are labelled right.")
    tokenizer.save_pretrained("my_tokenizer")
    model.save_pretrained("my_model")  # config.json, and the weights as model.safetensors
    torch.save(model.state_dict(), "my_model/pytorch_model.bin")  # the form that archives of 2022 carry


if __name__ == "__main__":
    main()
