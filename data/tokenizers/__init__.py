"""What turns captions into token ids: `python -m data.tokenizers` trains and shows."""
