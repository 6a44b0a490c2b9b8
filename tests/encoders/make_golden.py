"""Rewrites golden_encoders.json from torch and transformers: python tests/encoders/make_golden.py"""

import json
from pathlib import Path

import numpy as np
import reference_weights as ref
import torch
from torch_resnet import TorchResNet
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

PATH = Path(__file__).with_name("golden_encoders.json")


def summary(array: torch.Tensor) -> dict:
    """Shape, mean square and 24 evenly spaced values of an array laid out as in JAX."""
    flat = array.detach().double().numpy().ravel()
    picks = flat[np.linspace(0, flat.size - 1, 24).astype(int)]
    return {
        "shape": list(array.shape),
        "mean_square": float(np.mean(flat**2)),
        "values": [float(np.float32(v)) for v in picks],
    }


def load(model: torch.nn.Module) -> torch.nn.Module:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = ref.fill(shapes)
    for copy, original in (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ):
        if copy in tensors:
            tensors[copy] = tensors[original]
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return model


def vit_names(model: ViTModel) -> ViTModel:
    """Fills a ViT by the names of the saved file, as Linen sees them, not by those in memory."""
    in_file = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        new = name.replace("layers.", "encoder.layer.", 1) if name.startswith("layers.") else name
        for memory, file in in_file.items():
            new = new.replace(f"attention.{memory}", f"attention.{file}")
        new = new.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        state[name] = torch.from_numpy(ref.fill({new: tuple(tensor.shape)})[new])
    model.load_state_dict(state)
    return model


def main() -> None:
    golden = {}
    for name, fields in ref.RESNETS.items():
        model = load(TorchResNet(fields["stage_sizes"], fields["width"], name == "bottleneck"))
        x = torch.from_numpy(ref.image(3, 64)).permute(0, 3, 1, 2)
        golden[f"resnet_{name}_eval"] = [summary(s.permute(0, 2, 3, 1)) for s in model.eval()(x)]
        golden[f"resnet_{name}_train"] = [summary(s.permute(0, 2, 3, 1)) for s in model.train()(x)]
        golden[f"resnet_{name}_running_var"] = summary(model.layer4[0].bn1.running_var)
    config = BertConfig(**ref.BERT, attn_implementation="eager")
    model = load(BertForMaskedLM(config)).eval()
    ids, mask, types = (torch.from_numpy(a).long() for a in ref.tokens(3, 20, config.vocab_size))
    out = model(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True, output_attentions=True)
    golden["bert_hidden"] = [summary(h) for h in out.hidden_states]
    golden["bert_attention"] = summary(out.attentions[-1])
    golden["bert_logits"] = summary(out.logits)
    v = ref.VIT
    config = ViTConfig(
        hidden_size=v["width"],
        num_hidden_layers=v["layers"],
        num_attention_heads=v["heads"],
        intermediate_size=v["hidden"],
        image_size=v["image"],
        patch_size=v["patch"],
        layer_norm_eps=1e-12,
    )
    model = vit_names(ViTModel(config)).eval()
    out = model(torch.from_numpy(ref.image(2, v["image"])).permute(0, 3, 1, 2))
    golden["vit_last"] = summary(out.last_hidden_state)
    golden["vit_pooled"] = summary(out.pooler_output)
    PATH.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
