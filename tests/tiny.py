"""Networks that are small and know nothing: what tests of encoders tune, distil and decode from."""

from collections.abc import Sequence
from pathlib import Path

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentence_model(
    root: Path, words: Sequence[str], *, layers: int = 2, width: int = 32, embeddings: float = 10, others: float = 6
) -> Path:
    """A sentence model below `root` that knows these words, with random weights and dropout.

    Matrices are multiplied by `embeddings` and by `others`, or all texts would be alike.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (root / "vocab.txt").write_text("\n".join([*MARKS, *words]))
    BertTokenizerFast(str(root / "vocab.txt"), model_max_length=16).save_pretrained(root / "base")
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 2 * width}
    config = BertConfig(vocab_size=len(MARKS) + len(words), num_attention_heads=2, **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(root / "base")
    network = SentenceTransformer(modules=[Transformer(str(root / "base")), Pooling(width)], device="cpu")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.mul_(embeddings if "embeddings" in name else others)
    network.save(str(root / "model"), create_model_card=False)
    return root / "model"
