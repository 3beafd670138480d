"""A megatron-core GPTModel for one rank, with its share of a Hugging Face directory's weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def world(self):
        """Ranks of one replica: the expert grid is laid over the dense one."""
        return self.pp * max(self.tp, self.ep)


def read_config(directory):
    """config.json with the few derived values that both families need."""
    config = json.loads((Path(directory) / "config.json").read_text())
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["theta"] = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    config["experts"] = config.get("num_local_experts")
    return config


def transformer_config(config, layout, dtype):
    """Megatron's configuration for a Llama or Mixtral."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    moe = {}
    if config["experts"]:
        moe = dict(
            num_moe_experts=config["experts"],
            moe_router_topk=config["num_experts_per_tok"],
            moe_ffn_hidden_size=config["intermediate_size"],
            moe_token_dispatcher_type="alltoall",
            moe_router_load_balancing_type="none",
            moe_aux_loss_coeff=0.0,
            moe_grouped_gemm=False,
            moe_router_dtype="fp32",
            inference_moe_token_dispatcher_type="nccl",  # the default needs NVLink memory
        )
    return TransformerConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config["head_dim"],
        ffn_hidden_size=config["intermediate_size"],
        layernorm_epsilon=config["rms_norm_eps"],
        use_cpu_initialization=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=1 if layout.ep > 1 else None,
        sequence_parallel=layout.tp > 1 and layout.ep > 1,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        **moe,
    )


class Shards:
    """Renames and cuts Hugging Face tensors for one rank."""

    def __init__(self, tensors, config, layout):
        from megatron.core import parallel_state

        self.tensors, self.config, self.layout = tensors, config, layout
        self.tp_rank = parallel_state.get_tensor_model_parallel_rank()
        self.pp_rank = parallel_state.get_pipeline_model_parallel_rank()
        self.ep_rank = parallel_state.get_expert_model_parallel_rank() if config["experts"] else 0
        self.first = parallel_state.is_pipeline_first_stage()
        self.last = parallel_state.is_pipeline_last_stage()

    def rows(self, weight):
        """This rank's share of the output dimension."""
        return weight.chunk(self.layout.tp, 0)[self.tp_rank]

    def columns(self, weight):
        """This rank's share of the input dimension."""
        return weight.chunk(self.layout.tp, 1)[self.tp_rank]

    def edges(self):
        """Embedding, final norm and head, where this stage has them."""
        tied, embedding = self.config["tie_word_embeddings"], self.tensors["model.embed_tokens.weight"]
        out = {}
        if self.first:
            out["embedding.word_embeddings.weight"] = self.rows(embedding)
        if self.last:
            out["decoder.final_layernorm.weight"] = self.tensors["model.norm.weight"]
            if not tied or not self.first:
                out["output_layer.weight"] = self.rows(embedding if tied else self.tensors["lm_head.weight"])
        return out

    def attention(self, source, target):
        """q, k and v interleaved by KV group, as Megatron stores them."""
        q, k, v = (self.tensors[f"{source}self_attn.{name}_proj.weight"] for name in "qkv")
        groups, dim = self.config["num_key_value_heads"], self.config["head_dim"]
        per_group = zip(q.chunk(groups), k.split(dim), v.split(dim))
        return {
            f"{target}self_attention.linear_qkv.weight": self.rows(torch.cat([torch.cat(g) for g in per_group])),
            f"{target}self_attention.linear_proj.weight": self.columns(self.tensors[f"{source}self_attn.o_proj.weight"]),
        }

    def dense_mlp(self, source, target):
        """Gate and up stacked per rank, down cut by columns."""
        gate, up, down = (self.tensors[f"{source}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return {
            f"{target}mlp.linear_fc1.weight": torch.cat([self.rows(gate), self.rows(up)]),
            f"{target}mlp.linear_fc2.weight": self.columns(down),
        }

    def experts(self, source, target):
        """The router, and the experts that live on this rank (whole when EP > 1, else cut by TP)."""
        out = {f"{target}mlp.router.weight": self.tensors[f"{source}block_sparse_moe.gate.weight"]}
        count = self.config["experts"] // self.layout.ep
        whole = self.layout.ep > 1
        for local in range(count):
            name = f"{source}block_sparse_moe.experts.{self.ep_rank * count + local}."
            gate, down, up = (self.tensors[f"{name}w{i}.weight"] for i in (1, 2, 3))
            halves = [gate, up] if whole else [self.rows(gate), self.rows(up)]
            prefix = f"{target}mlp.experts.local_experts.{local}."
            out[f"{prefix}linear_fc1.weight"] = torch.cat(halves)
            out[f"{prefix}linear_fc2.weight"] = down if whole else self.columns(down)
        return out

    def all(self):
        """Everything that this rank's model wants, by Megatron's names."""
        out = self.edges()
        per_stage = self.config["num_hidden_layers"] // self.layout.pp
        for local in range(per_stage):
            source, target = f"model.layers.{self.pp_rank * per_stage + local}.", f"decoder.layers.{local}."
            out[f"{target}input_layernorm.weight"] = self.tensors[f"{source}input_layernorm.weight"]
            out[f"{target}pre_mlp_layernorm.weight"] = self.tensors[f"{source}post_attention_layernorm.weight"]
            out |= self.attention(source, target)
            out |= (self.experts if self.config["experts"] else self.dense_mlp)(source, target)
        return out


def load_strictly(model, wanted):
    """Copy every tensor; a missing, extra or misshapen one is an error."""
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    missing = {k for k in set(own) - set(wanted) if "extra_state" not in k}
    extra = set(wanted) - set(own)
    if missing or extra:
        raise SystemExit(f"weights do not fit: missing {sorted(missing)}, extra {sorted(extra)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if own[name].shape != tensor.shape:
                raise SystemExit(f"{name}: model {tuple(own[name].shape)}, file {tuple(tensor.shape)}")
            own[name].copy_(tensor)


def build(directory, layout, max_sequence_length, dtype=torch.float32):
    """The model of this rank and its Megatron configuration."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    config = read_config(directory)
    megatron_config = transformer_config(config, layout, dtype)
    shards = Shards(load_file(Path(directory) / "model.safetensors"), config, layout)
    model = GPTModel(
        megatron_config,
        get_gpt_layer_local_spec(num_experts=config["experts"], moe_grouped_gemm=False, normalization="RMSNorm"),
        vocab_size=config["vocab_size"],
        max_sequence_length=max_sequence_length,
        pre_process=shards.first,
        post_process=shards.last,
        parallel_output=True,
        share_embeddings_and_output_weights=config["tie_word_embeddings"],
        position_embedding_type="rope",
        rotary_base=config["theta"],
    )
    load_strictly(model, shards.all())
    return model.to(dtype).eval(), megatron_config, config
