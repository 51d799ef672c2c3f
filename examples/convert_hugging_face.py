"""A Hugging Face model whose norms become normlib's and PyTorch's again; needs `pip install transformers`."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import normlib
from normlib.convert import Summary


def main() -> Summary:
    """Returns what was converted."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As from_pretrained returns it, but small and with random weights.
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **size)).to(device).eval()
    tokens = torch.randint(20, (1, 6), device=device)
    with torch.no_grad():
        before = model(tokens).logits
        summary = normlib.convert(model)
        print(summary)
        torch.testing.assert_close(model(tokens).logits, before)
    print("converted back:", len(normlib.revert(model)))
    return summary


if __name__ == "__main__":
    main()
