"""What parts of a stage move beside the products of their matrices: through memory and links.

Values are counted as fused kernels (Transformer Engine's) move them, in and out:

- Of a layer, 2 norms read and write ``hidden`` values, 2 residual additions read two rows and
  write one: 10 * hidden, which tp splits only with sp. Rotary positions read and write queries
  and keys; the activation reads what it takes and writes what it gives; tp splits these.
- Experts' tokens are sorted and put back: 4 * hidden for each expert that a token goes to.
- The loss passes five times over the logits in fp32: cast, maximum, difference, exponent and sum.
- Left out: biases, the router, and the sums of losses over tp.
"""

from dataclasses import dataclass

from disagg_train.config.models import EncoderConfig, GptConfig

_NORMS_AND_RESIDUALS = 10
_PASSES_OF_LOSS = 5


@dataclass(frozen=True)
class Sent:
    """What collectives carry.

    Args:
        values: per token.
        times: how many collectives that takes.
    """

    values: float = 0.0
    times: int = 0


@dataclass(frozen=True)
class Traffic:
    """What a part moves in a forward; values are per token and of all tp ranks together.

    Args:
        moved: by element-wise work that tp splits only with sp.
        moved_cut: by element-wise work that tp splits.
        sums: over tp, in a forward. With sp, gathers and scattered sums of the same bytes.
        sums_back: in a backward.
        gathers: inputs of matrices that sp gathers once more for the matrices' gradients.
        ring: keys and values, which go around the cp ranks.
        routed: to the ranks of experts and back.
        launches: layers, each of which has kernels to launch.
    """

    moved: float = 0.0
    moved_cut: float = 0.0
    sums: Sent = Sent()
    sums_back: Sent = Sent()
    gathers: Sent = Sent()
    ring: Sent = Sent()
    routed: Sent = Sent()
    launches: int = 0


def layers_traffic(
    model: GptConfig | EncoderConfig, of_queries: int, of_keys: int, num_layers: int
) -> Traffic:
    """Return the traffic of layers.

    Megatron sums a layer's rows over tp twice in a forward, and their gradients twice in a
    backward (Shoeybi et al., 2019); tokens for experts are gathered over tp instead, once for
    each expert that they go to.

    Args:
        model: its sizes.
        of_queries: width of the queries of all heads.
        of_keys: width of the keys of all heads.
        num_layers: how many layers.
    """
    n, width = num_layers, model.hidden_size
    if isinstance(model, EncoderConfig):
        experts, moved_cut = 0, 2 * model.ffn_size
    elif model.num_experts is None:
        experts, moved_cut = 0, 2 * (of_queries + of_keys) + 3 * model.ffn_size
    else:
        experts = model.experts_per_token
        moved_cut = 2 * (of_queries + of_keys) + 3 * experts * model.expert_ffn_size
    sums = Sent(n * width * (1 + (experts or 1)), 2 * n)
    matrices = 1 if experts else 2
    return Traffic(
        moved=n * width * (_NORMS_AND_RESIDUALS + 4 * experts),
        moved_cut=n * moved_cut,
        sums=sums,
        sums_back=sums,
        gathers=Sent(n * width * matrices, n * matrices),
        ring=Sent(n * 2 * of_keys, n),
        routed=Sent(n * 2 * width * experts, 2 * n) if experts else Sent(),
        launches=n,
    )


def embedding_traffic(model: GptConfig | EncoderConfig) -> Traffic:
    """Return the traffic before the first layer: the LLM's rows are summed over tp."""
    width = model.hidden_size
    is_gpt = isinstance(model, GptConfig)
    return Traffic(moved=2 * width, sums=Sent(width, 1) if is_gpt else Sent())


def projector_traffic(width: int, outer: int, merge: int, is_mlp: bool) -> Traffic:
    """Return the traffic of a projector, per token of the encoder.

    Args:
        width: the encoder's.
        outer: the LLM's.
        merge: tokens that are joined.
        is_mlp: whether it has two matrices, which tp cuts; one is whole on every rank.
    """
    if not is_mlp:
        return Traffic(launches=1)
    return Traffic(
        moved_cut=2 * outer / merge,
        sums=Sent(outer / merge, 1),
        sums_back=Sent(width, 1),
        gathers=Sent(width, 1),
        launches=1,
    )


def output_traffic(model: GptConfig, fp32_values: float) -> Traffic:
    """Return the traffic behind the last layer.

    Args:
        model: the LLM's sizes.
        fp32_values: values that take the memory of one in fp32.
    """
    rows = Sent(model.hidden_size, 1)
    passes = _PASSES_OF_LOSS * model.vocab_size * fp32_values
    return Traffic(moved_cut=passes, sums_back=rows, gathers=rows, launches=1)
