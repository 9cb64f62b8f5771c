"""The ablations: each paper's own question and finding, and the arms that repeat it on a laptop.

The last three, `choice_*`, ask about the laptop recipes themselves: what they take, and what they leave.

All share one setting: CamVid's photographs at about half their size, 180x240 pixels, random crops of 96x128 of them,
20 epochs from random weights, laptop-size models. The last weights count: nothing is selected on the images that are
scored. A crop has 12x16 cells at stride 8, where the papers' crops have 41 or more a side, so rates and windows are
theirs in proportion, about a third. Arms are tested on whole pictures, but those of GCN in windows as large as the
crops: a kernel of the map's size has weights for offsets that only a larger map has, and no crop has trained them.

Findings are quoted from the papers. Where a review of the paper is the source, `source` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from seglearn.ablations.claims import Ablation, Arm, Claim
from seglearn.errors import InputError

EPOCHS = 20
SETTING: dict[str, Any] = {
    "epochs": EPOCHS,
    "evaluate_every": EPOCHS,
    "crop": [96, 128],
    "scale": [0.35, 0.65],
    "test_scales": [0.5],
}
AS_GOOD = -0.01  # within one percent of mIoU


def _arms(recipe: str, **options: dict[str, Any]) -> tuple[Arm, ...]:
    """Arms of one recipe that differ in the model's options; underscores of a label stand for spaces."""
    return tuple(Arm(label.replace("_", " "), recipe, {"options": given}) for label, given in options.items())


def _gcn(label: str, **options: Any) -> Arm:
    return Arm(label, "laptop/gcn", {"options": options}, windows=True)


def _whole(of: Arm) -> Arm:
    return replace(of, label=f"{of.label}, whole pictures", of=of.label, windows=False)


def _v3(label: str, **options: Any) -> Arm:
    return Arm(label, "laptop/deeplab_v3", {"options": {"rates": [1, 2, 3], **options}})


def _tested(of: Arm, output_stride: int) -> Arm:
    label = f"{of.label}, tested at {output_stride}"
    return Arm(label, of.recipe, of.overrides, of=of.label, tested={"output_stride": output_stride})


def _fcn8s(label: str, **overrides: Any) -> Arm:
    return Arm(label, "laptop/fcn8s", overrides)


FRONT = Arm("front end", "laptop/dilation_front")
FROZEN: dict[str, Any] = {"freeze": ["front_end"], "init_from": None}
BASIC = Arm("basic context", "laptop/dilation", FROZEN, start="front end")
STRIDE_8, STRIDE_32 = (_v3(f"trained at {stride}", output_stride=stride) for stride in (8, 32))
STRIDE_16 = _v3("trained at 16")  # the default stride: other ablations share the run

GLOBAL_1, GLOBAL_15 = (_gcn(f"k = {kernel}", kernel=kernel, refine=False) for kernel in (1, 15))

TABLE: tuple[Ablation, ...] = (
    Ablation(
        "fcn_skips",
        "Do the skips to pool4 and pool3 help, each on top of the other?",
        "mIoU 59.4 (32s), 62.4 (16s), 62.7 (8s) on VOC2011 val: the first skip brings more than the second",
        "Long et al. 2015 (arXiv 1411.4038), table 2",
        (Arm("32s", "laptop/fcn32s"), Arm("16s", "laptop/fcn16s"), Arm("8s", "laptop/fcn8s")),
        (
            Claim("FCN-16s scores higher than FCN-32s", "16s", "32s"),
            Claim("FCN-8s scores higher than FCN-16s", "8s", "16s"),
            Claim("FCN-8s finds borders better than FCN-32s", "8s", "32s", "boundary_f1"),
        ),
    ),
    Ablation(
        "fcn_at_once",
        "Must FCN-8s be trained stage after stage, or can it be trained at once?",
        "mIoU 65.5 in stages and 65.4 at once, on 736 images of VOC2011 val",
        "the authors' release (shelhamer/fcn.berkeleyvision.org), README",
        (
            Arm("32s", "laptop/fcn32s"),
            Arm("16s after 32s", "laptop/fcn16s", start="32s"),
            Arm("8s in stages", "laptop/fcn8s", start="16s after 32s"),
            Arm("8s at once", "laptop/fcn8s_atonce", {"epochs": 3 * EPOCHS, "evaluate_every": 3 * EPOCHS}),
            Arm("8s at once, unscaled", "laptop/fcn8s", {"epochs": 3 * EPOCHS, "evaluate_every": 3 * EPOCHS}),
        ),
        (
            Claim("trained at once, in as many steps, it is as good", "8s at once", "8s in stages", margin=AS_GOOD),
            Claim(
                "it is so without the factors on the skips, too", "8s at once, unscaled", "8s in stages", margin=AS_GOOD
            ),
        ),
    ),
    Ablation(
        "segnet_decoder",
        "What is remembering where each maximum was worth, for score and memory?",
        "mIoU 43.3 (bilinear), 47.7 (indices), 48.5 (indices and the encoder's features) with 0, 1 and 64 units of "
        "memory, on CamVid's 233 test images with balanced classes",
        "Badrinarayanan et al. 2017 (arXiv 1511.00561), table 1; bilinear there has no learnt decoder, here it has",
        _arms(
            "laptop/segnet_basic",
            bilinear={"keeps": "nothing"},
            indices={"keeps": "indices"},
            features={"keeps": "features"},
        ),
        (
            Claim("indices score higher than bilinear upsampling", "indices", "bilinear"),
            Claim("indices find borders better than bilinear upsampling", "indices", "bilinear", "boundary_f1"),
            Claim("the encoder's features score higher still", "features", "indices"),
            Claim("they take more memory", "features", "indices", "decoder_memory"),
        ),
    ),
    Ablation(
        "dilation_context",
        "Does a context module on top of the front end help, and a wider one more?",
        "mIoU 69.8 (front end), 71.3 (basic), 72.1 (large) on VOC2012 val, trained with COCO",
        "Yu & Koltun 2016 (arXiv 1511.07122), table 3",
        (
            FRONT,
            Arm("front end, twice as long", "laptop/dilation_front", start="front end"),
            BASIC,
            Arm("large context", "laptop/dilation", FROZEN | {"options": {"context": "large"}}, start="front end"),
        ),
        (
            Claim("the basic module helps", "basic context", "front end"),
            Claim("it helps more than training on", "basic context", "front end, twice as long"),
            Claim("the large module helps more", "large context", "basic context"),
        ),
    ),
    Ablation(
        "dilation_start",
        "Must the context module start as the identity?",
        "random initialisation failed: it did not learn",
        "Yu & Koltun 2016 (arXiv 1511.07122), section 3",
        (
            FRONT,
            BASIC,
            Arm("random start", "laptop/dilation", FROZEN | {"options": {"identity": False}}, start="front end"),
        ),
        (
            Claim("the identity is the better start", "basic context", "random start"),
            Claim("a module from a random start is worse than none", "front end", "random start"),
        ),
    ),
    Ablation(
        "dilation_joint",
        "Should front end and context module be trained together?",
        "training both together brought no gain on VOC2012",
        "Yu & Koltun 2016 (arXiv 1511.07122), section 5",
        (
            FRONT,
            BASIC,
            Arm(
                "then both",
                "laptop/dilation",
                {"freeze": [], "init_from": None, "lr": 0.0003},
                start="basic context",
            ),
            Arm(
                "both from scratch",
                "laptop/dilation",
                {"freeze": [], "init_from": None, "epochs": 2 * EPOCHS, "evaluate_every": 2 * EPOCHS},
            ),
        ),
        (
            Claim("a third stage for both brings a gain", "then both", "basic context"),
            Claim("in two stages it is as good as from scratch", "basic context", "both from scratch", margin=AS_GOOD),
        ),
    ),
    Ablation(
        "deeplab_v1_field",
        "How large a field of view does fc6 need, and may its taps lie apart?",
        "before the CRF, mIoU 64.38 (7x7 at rate 4), 63.41 (4x4 at 8), 62.25 (3x3 at 12: LargeFOV, a sixth of the "
        "parameters), 59.80 (4x4 at 4: a smaller field) on VOC2012 val",
        "Chen et al. 2015 (arXiv 1412.7062), tables 1 and 2; here at a quarter of the rates, with equal channels",
        (
            Arm("7x7, rate 1", "laptop/deeplab_v1", {"options": {"fc6": [7, 1]}}),
            Arm("4x4, rate 2", "laptop/deeplab_v1", {"options": {"fc6": [4, 2]}}),
            Arm("3x3, rate 3", "laptop/deeplab_v1", {"options": {"fc6": [3, 3]}}),
            Arm("3x3, rate 1", "laptop/deeplab_v1", {"options": {"fc6": [3, 1]}}),
            Arm("3x3, rate 6", "laptop/deeplab_v1", {"options": {"fc6": [3, 6]}}),
        ),
        (
            Claim("taps apart see more and score higher", "3x3, rate 3", "3x3, rate 1"),
            Claim("few taps apart are as good as many together", "3x3, rate 3", "7x7, rate 1", margin=AS_GOOD),
            Claim("taps too far apart score lower", "3x3, rate 3", "3x3, rate 6"),
        ),
    ),
    Ablation(
        "deeplab_v1_features",
        "Do features of image and early maps (MSc) help?",
        "before the CRF, mIoU 62.25 without and 64.21 with them (LargeFOV) on VOC2012 val",
        "Chen et al. 2015 (arXiv 1412.7062), table 1; there MSc's weights are trained in a second step",
        (
            Arm("without", "laptop/deeplab_v1", {"options": {"fc6": [3, 3]}}),
            Arm("MSc", "laptop/deeplab_v1_msc", {"options": {"fc6": [3, 3]}}),
        ),
        (
            Claim("MSc scores higher", "MSc", "without"),
            Claim("MSc finds borders better", "MSc", "without", "boundary_f1"),
        ),
    ),
    Ablation(
        "deeplab_crf",
        "Does a dense CRF behind the network help?",
        "mIoU 62.25 before and 67.64 after the CRF (LargeFOV) on VOC2012 val",
        "Chen et al. 2015 (arXiv 1412.7062), table 1",
        (
            Arm("network", "laptop/deeplab_v1", {"options": {"fc6": [3, 3]}}, crf="alone"),
            Arm("network and CRF", "laptop/deeplab_v1", {"options": {"fc6": [3, 3]}}, of="network", crf="crf"),
        ),
        (
            Claim("the CRF raises the mIoU", "network and CRF", "network"),
            Claim("the CRF finds borders better", "network and CRF", "network", "boundary_f1"),
        ),
    ),
    Ablation(
        "deeplab_v2_aspp",
        "One rate, several small ones, or several up to large?",
        "before the CRF, mIoU 65.76 (LargeFOV), 66.98 (ASPP-S), 68.96 (ASPP-L) on VOC2012 val, VGG-16",
        "Chen et al. 2016 (arXiv 1606.00915), table 3; here rates are a third of theirs, on a ResNet",
        (
            Arm("LargeFOV", "laptop/deeplab_v2", {"options": {"scales": [1], "rates": [4]}}),
            Arm("ASPP-S", "laptop/deeplab_v2", {"options": {"scales": [1], "rates": [1, 2, 3, 4]}}),
            Arm("ASPP-L", "laptop/deeplab_v2", {"options": {"scales": [1], "rates": [2, 4, 6, 8]}}),
        ),
        (
            Claim("several small rates score higher than one", "ASPP-S", "LargeFOV"),
            Claim("larger rates score higher", "ASPP-L", "ASPP-S"),
        ),
    ),
    Ablation(
        "deeplab_v2_scales",
        "Does it help to see the image at three scales?",
        "mIoU 68.72 at one scale, 71.27 at three, on VOC2012 val, ResNet-101",
        "Chen et al. 2016 (arXiv 1606.00915), table 4",
        (
            Arm("one scale", "laptop/deeplab_v2", {"options": {"scales": [1], "rates": [2, 4, 6, 8]}}),
            Arm("three scales", "laptop/deeplab_v2", {"options": {"rates": [2, 4, 6, 8]}}),
        ),
        (Claim("three scales score higher", "three scales", "one scale"),),
    ),
    Ablation(
        "refinenet_pooling",
        "Does chained residual pooling help?",
        "the paper adds it for context; the numbers of its ablation are not in a text that we could check",
        "Lin et al. 2017 (arXiv 1611.06612)",
        _arms("laptop/refinenet", none={"pools": 0}, two={"pools": 2}, four={}),
        (
            Claim("two poolings score higher than none", "two", "none"),
            Claim("four score higher than two", "four", "two"),
        ),
    ),
    Ablation(
        "refinenet_cascades",
        "Do four blocks refine better than two, or one?",
        "the paper takes four; the numbers of its ablation are not in a text that we could check",
        "Lin et al. 2017 (arXiv 1611.06612)",
        _arms("laptop/refinenet", one={"cascades": 1}, two={"cascades": 2}, four={}),
        (
            Claim("two blocks score higher than one", "two", "one"),
            Claim("four score higher than two", "four", "two"),
        ),
    ),
    Ablation(
        "refinenet_memory",
        "Does a decoder take less memory than dilation, at the same score or better?",
        "the paper refines maps of the plain ResNet instead of dilating it",
        "Lin et al. 2017 (arXiv 1611.06612); compared with a dilated ResNet-18 of the same width at stride 8",
        (
            Arm("RefineNet", "laptop/refinenet", {"options": {}}),
            Arm("dilated", "laptop/fcn_resnet", {"options": {"width": 16}}),
        ),
        (
            Claim("RefineNet needs less memory in training", "dilated", "RefineNet", "training_memory"),
            Claim("RefineNet scores higher", "RefineNet", "dilated"),
            Claim("RefineNet finds borders better", "RefineNet", "dilated", "boundary_f1"),
        ),
    ),
    Ablation(
        "pspnet_bins",
        "Does the pyramid help, and are four levels better than the image's average?",
        "mIoU 37.23 (none), 40.07 (bin 1), 41.07 (bins 1, 2, 3, 6), 41.68 (with reduced channels) on ADE20K val",
        "Zhao et al. 2017 (arXiv 1612.01105), table 1 as a review quotes it; all arms here reduce channels",
        (
            Arm("none", "laptop/pspnet", {"options": {"bins": []}}),
            Arm("1", "laptop/pspnet", {"options": {"bins": [1]}}),
            Arm("1, 2, 3, 6", "laptop/pspnet", {"options": {"bins": [1, 2, 3, 6]}}),
        ),
        (
            Claim("the image's average scores higher than none", "1", "none"),
            Claim("four levels score higher than one", "1, 2, 3, 6", "1"),
        ),
    ),
    Ablation(
        "pspnet_aux",
        "Does the auxiliary loss help, and is 0.4 its best weight?",
        "mIoU 35.82 (none), 37.01 (0.3), 37.23 (0.4), 37.09 (0.6), 36.99 (0.9) on ADE20K val",
        "Zhao et al. 2017 (arXiv 1612.01105), table 2 as a review quotes it",
        (
            Arm("none", "laptop/pspnet", {"options": {"bins": [1, 2, 3, 6], "aux": False}}),
            Arm("0.4", "laptop/pspnet", {"options": {"bins": [1, 2, 3, 6]}}),
            Arm("0.9", "laptop/pspnet", {"options": {"bins": [1, 2, 3, 6], "aux_weight": 0.9}}),
        ),
        (
            Claim("an auxiliary loss scores higher than none", "0.4", "none"),
            Claim("the weight 0.4 scores higher than 0.9", "0.4", "0.9"),
        ),
    ),
    Ablation(
        "gcn_kernel",
        "Does the score grow with the kernel, up to the whole map?",
        "mIoU 69.0 (1x1), 70.1 (3), 71.1 (5), 72.8 (7), 73.4 (9), 73.7 (11), 74.0 (13), 74.5 (15) on VOC2012 val",
        "Peng et al. 2017 (arXiv 1703.02719), table 1 as a review quotes it; here no arm refines boundaries",
        tuple(_gcn(f"k = {k}", kernel=k, refine=False) for k in (1, 3, 5, 7, 11, 15)),
        (
            Claim("3 scores higher than 1", "k = 3", "k = 1"),
            Claim("7 scores higher than 3", "k = 7", "k = 3"),
            Claim("15 scores higher than 7", "k = 15", "k = 7"),
            Claim("what 15 adds to 1, it adds inside regions", "k = 15", "k = 1", "miou_inside"),
        ),
    ),
    Ablation(
        "gcn_window",
        "Must a picture be as large as the training crops for a kernel as large as the map?",
        "no numbers; training pads VOC's pictures to 512 pixels, where 15 cells nearly cover the last map of 16x16",
        "Peng et al. 2017 (arXiv 1703.02719), section 4.3",
        (GLOBAL_1, GLOBAL_15, _whole(GLOBAL_1), _whole(GLOBAL_15)),
        (
            Claim("k = 15 scores higher in windows of the crop's size", "k = 15", "k = 15, whole pictures"),
            Claim("k = 1 scores as high on whole pictures", "k = 1, whole pictures", "k = 1", margin=AS_GOOD),
        ),
    ),
    Ablation(
        "gcn_form",
        "Is it the kernel's reach, or could any layers of that reach do the same?",
        "one 9x9 convolution has mIoU 68.8 and a stack of 3x3 with the reach of 11 has 67.5, where the separable "
        "kernels have 73.4 and 73.7, on VOC2012 val",
        "Peng et al. 2017 (arXiv 1703.02719), tables 2 and 3 as a review quotes them; here all at reach 7",
        (
            _gcn("separable", kernel=7, refine=False),
            _gcn("one 7x7", kernel=7, kind="trivial", refine=False),
            _gcn("three 3x3", kernel=7, kind="stack", refine=False),
        ),
        (
            Claim("separable kernels score higher than one convolution", "separable", "one 7x7"),
            Claim("separable kernels score higher than a stack", "separable", "three 3x3"),
            Claim("they have fewer parameters than one convolution", "one 7x7", "separable", "parameters"),
        ),
    ),
    Ablation(
        "gcn_boundary",
        "Does boundary refinement help at boundaries, and the large kernel inside?",
        "within 7 pixels of a boundary 71.3, inside 93.9 (k = 1); 71.5 and 95.0 (k = 15); 73.4 and 95.1 (k = 15, "
        "refined); mIoU over all pixels 69.0, 74.5 and 74.7 on VOC2012 val",
        "Peng et al. 2017 (arXiv 1703.02719), table 5 as a review quotes it; here the mIoU of either part",
        (GLOBAL_1, GLOBAL_15, _gcn("k = 15, refined", kernel=15)),
        (
            Claim("refinement helps near boundaries", "k = 15, refined", "k = 15", "miou_near"),
            Claim("refinement finds borders better", "k = 15, refined", "k = 15", "boundary_f1"),
            Claim("the large kernel helps inside", "k = 15", "k = 1", "miou_inside"),
        ),
    ),
    Ablation(
        "deeplab_v3_stride",
        "Which output stride for training, and which for the test?",
        "mIoU 77.21 (trained and tested at 16), 78.51 (trained at 16, tested at 8), 75.62 (8 and 8), 74.45 (8, tested "
        "at 16), 75.75 (32, tested at 8) on VOC2012 val",
        "Chen et al. 2017 (arXiv 1706.05587), table 10",
        (
            STRIDE_8,
            STRIDE_16,
            STRIDE_32,
            _tested(STRIDE_8, 16),
            _tested(STRIDE_16, 8),
            _tested(STRIDE_32, 8),
        ),
        (
            Claim("trained at 16, the test at 8 scores higher", "trained at 16, tested at 8", "trained at 16"),
            Claim("tested at 8, training at 16 is better than at 8", "trained at 16, tested at 8", "trained at 8"),
            Claim("trained at 16 it is better than at 32", "trained at 16", "trained at 32"),
            Claim("trained at 8, the test at 16 scores lower", "trained at 8", "trained at 8, tested at 16"),
        ),
    ),
    Ablation(
        "deeplab_v3_multi_grid",
        "Do growing rates within the last stage help?",
        "with ASPP, mIoU 75.36 (1, 1, 1), 75.93 (1, 2, 1), 76.58 (1, 2, 4) on VOC2012 val",
        "Chen et al. 2017 (arXiv 1706.05587), table 5; a ResNet-18's last stage has two units, not three",
        (
            _v3("1, 1", multi_grid=[1, 1]),
            _v3("1, 2"),
            _v3("2, 2", multi_grid=[2, 2]),
        ),
        (
            Claim("growing rates score higher than equal ones", "1, 2", "1, 1"),
            Claim("they score higher than larger equal ones", "1, 2", "2, 2"),
        ),
    ),
    Ablation(
        "deeplab_v3_image_pooling",
        "Does the image's average help beside ASPP's rates?",
        "mIoU 76.58 without and 77.21 with image pooling on VOC2012 val",
        "Chen et al. 2017 (arXiv 1706.05587), table 5",
        (_v3("without", image_pooling=False), _v3("with")),
        (Claim("image pooling scores higher", "with", "without"),),
    ),
    Ablation(
        "choice_weights",
        "Should rare classes weigh more in the loss, and how much more?",
        "SegNet-Basic: mIoU 47.7 and 82.7 % of the pixels right with median-frequency weights, 46.3 and 84.0 % without "
        "any, on CamVid's 233 test images",
        "Badrinarayanan et al. 2017 (arXiv 1511.00561), table 1; here FCN-8s",
        (
            _fcn8s("none", class_weights="none"),
            _fcn8s("inverse square root"),
            _fcn8s("median frequency", class_weights="median_frequency"),
        ),
        (
            Claim("weights score higher than none", "inverse square root", "none"),
            Claim("milder weights score higher than those of the paper", "inverse square root", "median frequency"),
            Claim("without weights more pixels are right", "none", "inverse square root", "pixel_accuracy"),
        ),
    ),
    Ablation(
        "choice_optimizer",
        "AdamW, or SGD with momentum as in the papers?",
        "the papers train with SGD, momentum 0.9 or 0.99, from pretrained weights",
        "the chapters on the models; here FCN-8s from random weights, SGD with momentum 0.9 and decay 0.0005",
        (
            _fcn8s("AdamW, 0.002"),
            *(
                _fcn8s(f"SGD, {rate}", optimizer="sgd", lr=rate, weight_decay=0.0005, momentum=0.9)
                for rate in (0.02, 0.1)
            ),
        ),
        (
            Claim("AdamW scores higher than SGD at 0.02", "AdamW, 0.002", "SGD, 0.02"),
            Claim("AdamW scores higher than SGD at 0.1", "AdamW, 0.002", "SGD, 0.1"),
            Claim("AdamW finds borders better than SGD at 0.02", "AdamW, 0.002", "SGD, 0.02", "boundary_f1"),
        ),
    ),
    Ablation(
        "choice_resolution",
        "At which size should a net see the pictures, if a step may not cost more?",
        "none asks; here crops have 96x128 pixels in all arms, so the larger the picture, the less of it is in a crop",
        "FCN-8s; training scales lie between about 2/3 and 4/3 of the size of the test",
        tuple(
            _fcn8s(label, scale=scale, test_scales=[test])
            for label, scale, test in (
                ("a quarter", [0.17, 0.33], 0.25),
                ("half", SETTING["scale"], 0.5),
                ("three quarters", [0.5, 1.0], 0.75),
            )
        ),
        (
            Claim("half the size scores higher than a quarter", "half", "a quarter"),
            Claim("three quarters score higher than half", "three quarters", "half"),
            Claim("three quarters find borders better than half", "three quarters", "half", "boundary_f1"),
        ),
    ),
)


def names() -> list[str]:
    """Names of the ablations, in the order of the papers; those about the recipes come last."""
    return [ablation.name for ablation in TABLE]


def choose(wanted: Sequence[str]) -> list[Ablation]:
    """The ablations of these names, each once, in the order of the papers; all of them for no name.

    Raises:
        InputError: an unknown name; it names the nearest.
    """
    for name in wanted:
        if name not in names():
            near = get_close_matches(name, names(), 1, cutoff=0)[0]
            raise InputError(f"ablation {name!r} is unknown: did you mean {near!r}? There are {', '.join(names())}.")
    return [ablation for ablation in TABLE if not wanted or ablation.name in wanted]
