"""Sizes of the demo models, shared by the loader, the recipe and the model card."""

LATENT_CHANNELS = 16
PATCH = 8  #: pixels per latent cell, as in SD and FLUX autoencoders
IMAGE_SIZE = 64
TEXT_LENGTH = 24  #: padded rows of a prompt (real models: 77 for SD, 256 for FLUX)

#: demo-sd: ComfyUI's UNetModel
UNET = dict(
    use_checkpoint=False, image_size=8, use_spatial_transformer=True, legacy=False, adm_in_channels=None,
    in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, model_channels=64, num_res_blocks=[1, 1],
    channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
    transformer_depth_middle=1, use_linear_in_transformer=False, context_dim=256,
    use_temporal_resblock=False, use_temporal_attention=False,
)  # fmt: skip
UNET_HEADS = 4

#: demo-flux: ComfyUI's Flux
FLUX = dict(
    image_model="flux", in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, patch_size=2,
    vec_in_dim=128,
    context_in_dim=192, hidden_size=192, mlp_ratio=4.0, num_heads=4, depth=2, depth_single_blocks=3,
    axes_dim=[16, 16, 16], theta=10000, qkv_bias=True, guidance_embed=True,
)  # fmt: skip

#: Text towers, in the configuration keys of transformers and ComfyUI. The tokenizer sets ``vocab_size``.
CLIP_SD = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
CLIP_FLUX = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
#: demo-people: longer prompts, and one layer more to tell people by first and last name together
CLIP_PEOPLE = dict(
    hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=32,
)  # fmt: skip
CLIP_COMMON = dict(hidden_act="quick_gelu", max_position_embeddings=TEXT_LENGTH, layer_norm_eps=1e-5)
T5 = dict(
    d_model=192,
    d_ff=384,
    d_kv=48,
    num_heads=4,
    num_layers=2,
    dense_act_fn="gelu_pytorch_tanh",
    is_gated_act=True,
    feed_forward_proj="gated-gelu",
    layer_norm_epsilon=1e-6,
    relative_attention_num_buckets=32,
    pad_token_id=0,
    eos_token_id=1,
    model_type="t5",
    dropout_rate=0.0,
)
