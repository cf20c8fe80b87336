"""Makes the weights: corpus, augmentation, tokenizer, pre-training, fine-tuning."""
