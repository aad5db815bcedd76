"""The tensors of the published `sam2_hiera_large.pt`, and of a small model in the same layout."""

import torch

LARGE = {"dims": (144, 288, 576, 1152), "blocks": (2, 6, 36, 4)}
SMALL = {"dims": (72, 144, 288, 576), "blocks": (1, 1, 2, 1)}


def random_weights() -> dict[str, torch.Tensor]:
    """A small model with random weights. It always finds the object, so that masks can be compared."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes(**SMALL).items()}
    for name in weights:
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 100
    return weights


def shapes(dims: tuple[int, ...], blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    found = {}

    def weight_bias(n, *shape, out=None):
        found[n + ".weight"] = shape
        found[n + ".bias"] = (out or shape[0],)

    def attn(n, d, inner, kv=None):
        for p in "qkv":
            weight_bias(f"{n}.{p}_proj", inner, (kv or d) if p in "kv" else d)
        weight_bias(f"{n}.out_proj", d, inner)

    def mlp3(n, a, b):
        weight_bias(n + ".layers.0", 256, a)
        weight_bias(n + ".layers.1", 256, 256)
        weight_bias(n + ".layers.2", b, 256)

    def norm(n, d):
        weight_bias(n, d)

    found["maskmem_tpos_enc"] = (7, 1, 1, 64)
    found["no_mem_embed"] = (1, 1, 256)
    found["no_mem_pos_enc"] = (1, 1, 256)
    found["no_obj_ptr"] = (1, 256)
    trunk = "image_encoder.trunk"
    found[trunk + ".pos_embed"] = (1, dims[0], 7, 7)
    found[trunk + ".pos_embed_window"] = (1, dims[0], 8, 8)
    weight_bias(trunk + ".patch_embed.proj", dims[0], 3, 7, 7)
    i = 0
    prev = dims[0]
    for d, n in zip(dims, blocks):
        for _ in range(n):
            b = f"{trunk}.blocks.{i}"
            norm(b + ".norm1", prev)
            weight_bias(b + ".attn.qkv", 3 * d, prev)
            weight_bias(b + ".attn.proj", d, d)
            norm(b + ".norm2", d)
            weight_bias(b + ".mlp.layers.0", 4 * d, d)
            weight_bias(b + ".mlp.layers.1", d, 4 * d)
            if prev != d:
                weight_bias(b + ".proj", d, prev)
            prev = d
            i += 1
    for k, d in enumerate(dims[::-1]):
        weight_bias(f"image_encoder.neck.convs.{k}.conv", 256, d, 1, 1)
    weight_bias("mask_downsample", 1, 1, 4, 4)
    for i in range(4):
        layer = f"memory_attention.layers.{i}"
        attn(layer + ".self_attn", 256, 256)
        attn(layer + ".cross_attn_image", 256, 256, 64)
        weight_bias(layer + ".linear1", 2048, 256)
        weight_bias(layer + ".linear2", 256, 2048)
        for j in (1, 2, 3):
            norm(f"{layer}.norm{j}", 256)
    norm("memory_attention.norm", 256)
    c = [1, 4, 16, 64, 256]
    for j in range(4):
        weight_bias(f"memory_encoder.mask_downsampler.encoder.{3 * j}", c[j + 1], c[j], 3, 3)
        norm(f"memory_encoder.mask_downsampler.encoder.{3 * j + 1}", c[j + 1])
    weight_bias("memory_encoder.mask_downsampler.encoder.12", 256, 256, 1, 1)
    weight_bias("memory_encoder.pix_feat_proj", 256, 256, 1, 1)
    for j in range(2):
        layer = f"memory_encoder.fuser.layers.{j}"
        found[layer + ".gamma"] = (256,)
        weight_bias(layer + ".dwconv", 256, 1, 7, 7)
        norm(layer + ".norm", 256)
        weight_bias(layer + ".pwconv1", 1024, 256)
        weight_bias(layer + ".pwconv2", 256, 1024)
    weight_bias("memory_encoder.out_proj", 64, 256, 1, 1)
    p = "sam_prompt_encoder"
    found[p + ".pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for j in range(4):
        found[f"{p}.point_embeddings.{j}.weight"] = (1, 256)
    found[p + ".not_a_point_embed.weight"] = (1, 256)
    found[p + ".no_mask_embed.weight"] = (1, 256)
    weight_bias(p + ".mask_downscaling.0", 4, 1, 2, 2)
    norm(p + ".mask_downscaling.1", 4)
    weight_bias(p + ".mask_downscaling.3", 16, 4, 2, 2)
    norm(p + ".mask_downscaling.4", 16)
    weight_bias(p + ".mask_downscaling.6", 256, 16, 1, 1)
    m = "sam_mask_decoder"
    for i in range(2):
        layer = f"{m}.transformer.layers.{i}"
        attn(layer + ".self_attn", 256, 256)
        attn(layer + ".cross_attn_token_to_image", 256, 128)
        attn(layer + ".cross_attn_image_to_token", 256, 128)
        for j in (1, 2, 3, 4):
            norm(f"{layer}.norm{j}", 256)
        weight_bias(layer + ".mlp.layers.0", 2048, 256)
        weight_bias(layer + ".mlp.layers.1", 256, 2048)
    attn(m + ".transformer.final_attn_token_to_image", 256, 128)
    norm(m + ".transformer.norm_final_attn", 256)
    for k, n in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
        found[f"{m}.{k}.weight"] = (n, 256)
    weight_bias(m + ".output_upscaling.0", 256, 64, 2, 2, out=64)
    norm(m + ".output_upscaling.1", 64)
    weight_bias(m + ".output_upscaling.3", 64, 32, 2, 2, out=32)
    weight_bias(m + ".conv_s0", 32, 256, 1, 1)
    weight_bias(m + ".conv_s1", 64, 256, 1, 1)
    for j in range(4):
        mlp3(f"{m}.output_hypernetworks_mlps.{j}", 256, 32)
    mlp3(m + ".iou_prediction_head", 256, 4)
    mlp3(m + ".pred_obj_score_head", 256, 1)
    mlp3("obj_ptr_proj", 256, 256)
    return found
