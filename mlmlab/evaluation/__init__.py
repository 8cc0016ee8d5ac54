"""What a trained model is asked: masked perplexity, its exact floor, fill-mask."""
