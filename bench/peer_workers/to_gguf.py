"""A planted Llama checkpoint as GGUF, in BF16 and quantised by llama.cpp itself. Runs in the peers' environment.

    python to_gguf.py CHECKPOINT OUT        writes OUT.bf16.gguf, OUT.q8_0.gguf, OUT.q4_0.gguf where missing

Without a vocabulary: benches speak token ids.
"""

import json
import os
import pathlib
import sys

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np

FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama_ftype
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight", "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight", "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight"}


def tensors(directory):
    """(name, bf16 bits as uint16 [shape])."""
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert entry["dtype"] == "BF16", (name, entry["dtype"])
            begin, end = entry["data_offsets"]
            yield name, np.memmap(path, np.uint16, "r", 8 + length + begin, tuple(entry["shape"]))


def renamed(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}"


def interleaved(weight, heads):
    """Rotary pairs (i, i + d/2) of Hugging Face become neighbours (2i, 2i + 1)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(directory, path):
    config = json.loads((directory / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    for name, bits in tensors(directory):
        if bits.ndim == 1:
            writer.add_tensor(renamed(name), (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if "q_proj" in name or "k_proj" in name:
            bits = interleaved(bits, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(renamed(name), np.ascontiguousarray(bits).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    directory, out = pathlib.Path(sys.argv[1]), sys.argv[2]
    plain = f"{out}.bf16.gguf"
    if not os.path.exists(plain):
        write(directory, plain + ".part")
        os.replace(plain + ".part", plain)
    for name, file_type in FILE_TYPES.items():
        path = f"{out}.{name}.gguf"
        if os.path.exists(path):
            continue
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = file_type
        if llama.llama_model_quantize(plain.encode(), (path + ".part").encode(), parameters) != 0:
            raise SystemExit(f"llama.cpp could not quantise {plain}")
        os.replace(path + ".part", path)


if __name__ == "__main__":
    main()
