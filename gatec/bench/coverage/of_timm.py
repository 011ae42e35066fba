"""timm: the smallest model of each of its module files, at the smallest image that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gatec.bench.coverage.entry import Built, Entry
from gatec.zoo import load
from gatec.zoo import names as known

NEEDS = ("timm",)
# Module file, model, side of the image, options. Sizes were tried once; a file of timm's that stands here no more is left out.
SMALLEST = """
beit beit_base_patch16_224 64 img_size=64,depth=2,embed_dim=192,num_heads=3
botnet botnet26t_256 64 img_size=64
byoanet halonet_h1 256 img_size=256
cait cait_xxs24_224 64 img_size=64
coat coat_tiny 64 img_size=64
coatnet coatnet_nano_rw_224 64 img_size=64
convit convit_tiny 64 img_size=64
convmixer convmixer_768_32 64
convnext convnext_atto 64
convnextv2 convnextv2_atto 64
cpubone cpubone_nano 64
crossvit crossvit_tiny_240 64
csatv2 csatv2 64
cspnet cs3darknet_focus_s 64
cspnext cspnext_tiny 64
cspresnet cspresnet50 64
darknet darknet21 64
davit davit_tiny 64 depths=(1,1,1,1)
deepseek_vit deepseek_vit_412m 56 img_size=56,depth=2,embed_dim=192,num_heads=3
deit deit_tiny_patch16_224 64 img_size=64
densenet densenet121 64
dla dla46x_c 64
dpn dpn48b 64
eca_botnext eca_botnext26ts_256 64 img_size=64
ecaresnet ecaresnet26t 64
edgenext edgenext_xx_small 64
efficientformer efficientformer_l1 224 depths=(1,1,1,2)
efficientformer_v2 efficientformerv2_s0 64 img_size=64
efficientnet efficientnet_b0 64
efficientnet_lite efficientnet_lite0 64
efficientnetv2 efficientnetv2_rw_t 64
efficientvim efficientvim_m1 64
efficientvit_mit efficientvit_b0 64
efficientvit_msra efficientvit_m0 64 img_size=64
eva vit_tiny_patch16_dinov3_qkvb 64 img_size=64
eva02 eva02_tiny_patch14_224 64 img_size=64
fasternet fasternet_t0 64
fastvit fastvit_t8 64
fbnet fbnetc_100 64
focalnet focalnet_tiny_srf 64
gcresnet gcresnext26ts 64
gcvit gcvit_xxtiny 64 img_size=64
gemma4_vit gemma4_vit_167m 96 img_size=96,depth=2,embed_dim=192,num_heads=3
gernet gernet_s 64
ghostnet ghostnet_050 64
hardcorenas hardcorenas_b 64
hgnet hgnetv2_b0 64
hiera hiera_tiny_224 64 img_size=64,stages=(1,1,1,1)
hieradet_sam2 sam2_hiera_tiny 64 stages=(1,1,1,1)
hrnet hrnet_w18_small 64
iformer iformer_t 64
inception_next inception_next_atto 64
inception_v3 inception_v3 96
lambdanet lambda_resnet26t 64
lcnetv2 lcnetv2_small 64
levit levit_conv_128s 64 img_size=64
lowformer lowformer_b0 64
mambaout mambaout_femto 64
maxvit maxvit_rmlp_pico_rw_256 64 img_size=64
metaformer poolformerv2_s12 64
mixer mixer_s32_224 64 img_size=64
mixnet mixnet_s 64
mlp_mixer gmlp_ti16_224 64 img_size=64
mnasnet mnasnet_small 64
mobilenetv2 mobilenetv2_035 64
mobilenetv3 mobilenetv3_small_050 64
mobilenetv5 mobilenetv5_base 64 channel_multiplier=0.25
mobileone mobileone_s0 64
mobilevit mobilevit_xxs 64 img_size=64
mvitv2 mvitv2_tiny 64 img_size=64
naflexvit naflexvit_base_patch16_parfac_gap 64 img_size=64,depth=2,embed_dim=192,num_heads=3
nest nest_tiny_jx 64 img_size=64
nextvit nextvit_small 64 depths=(1,1,5,1)
nfnet nf_regnet_b0 64
pit pit_ti_224 64 img_size=64
pvt_v2 pvt_v2_b0 64
qwen3_vit qwen3_vit_88m 64 img_size=64,depth=2
rdnet rdnet_tiny 64
regnet regnetx_002 64
regnety regnety_002 64
repghost repghostnet_050 64
repvgg repvgg_a0 64
repvit repvit_m1 64 img_size=64
res2net res2net50_14w_8s 64
resmlp resmlp_12_224 64 img_size=64
resnest resnest14d 64
resnet resnet10t 64
resnetv2 resnetv2_18 64
resnext resnext50_32x4d 64
rexnet rexnet_100 64
selecsls selecsls42 64
senet legacy_seresnet18 64
sequencer sequencer2d_s 64 img_size=64
seresnet seresnet18 64
seresnext seresnext26d_32x4d 64
shvit shvit_s1 64
sknet skresnet18 64
spnasnet spnasnet_100 64
starnet starnet_s050 64
swiftformer swiftformer_xs 64 img_size=64
swin_transformer swin_tiny_patch4_window7_224 64 img_size=64,depths=(2,2,2,1)
swin_transformer_v2 swinv2_tiny_window8_256 64 img_size=64,depths=(2,2,2,1)
swin_transformer_v2_cr swinv2_cr_tiny_224 64 img_size=64,depths=(2,2,2,1)
tiny_vit tiny_vit_5m_224 64
tinynet tinynet_e 64
tnt tnt_s_legacy_patch16_224 64 img_size=64
tresnet tresnet_m 64 layers=(1,1,1,1)
twins twins_svt_small 64 img_size=64
visformer visformer_tiny 64 img_size=64
vision_transformer vit_tiny_patch16_224 64 img_size=64
vision_transformer_hybrid vit_tiny_r_s16_p8_224 64 img_size=64
vision_transformer_relpos vit_relpos_small_patch16_224 64 img_size=64,depth=4
vision_transformer_sam samvit_base_patch16_224 64 img_size=64,depth=3,embed_dim=192,num_heads=3,global_attn_indexes=(1,)
vitamin vitamin_small_224 64 img_size=64
volo volo_d1_224 64 img_size=64
vovnet ese_vovnet19b_slim_dw 64
xception legacy_xception 64
xception_aligned xception41p 64
xcit xcit_nano_12_p16_224 64 img_size=64
"""


def entries() -> Iterator[Entry]:
    there = set(known())
    for line in SMALLEST.split("\n"):
        words = line.split()
        if words and f"timm:{words[1]}" in there:
            family, name, side, *options = words
            yield Entry("timm", family, name, partial(build, name, int(side), "".join(options)))


def build(name: str, side: int, options: str) -> Built:
    model = load(f"timm:{name}" + (f"?{options}" if options else ""))
    config: Any = model.pretrained_cfg
    image = torch.randn(2, config["input_size"][0], side, side, generator=torch.Generator().manual_seed(0))
    return model, ((image,), {})
