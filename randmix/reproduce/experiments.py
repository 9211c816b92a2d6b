"""The experiments as the report presents them: what is run, drawn and decided."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of the paper, or one of ours.

    Attributes:
        id: "E1" to "E12", or "convergence".
        title: a short title.
        source: the paper's figure and section.
        about: what was run and what the figures show.
        figures: names of its figures, drawn by ``pictures.draw``.
    """

    id: str
    title: str
    source: str
    about: str
    figures: tuple[str, ...]


EXPERIMENTS = {
    experiment.id: experiment
    for experiment in (
        Experiment(
            "E1",
            "Spectral coverage of random filters",
            "Figure 1, section 3.1",
            "Banks of random filters. The envelope of a bank is the largest magnitude, over its "
            "filters, of the Fourier transform of each filter padded to 512 x 512; frequency zero "
            "is in the middle. Coverage is the share of frequencies at which the envelope exceeds "
            "half of its maximum.",
            ("E1",),
        ),
        Experiment(
            "E2",
            "Separable ResNets over depth",
            "Figure 2, section 4.1.2",
            "Pre-activation ResNets in which every convolution is separable, trained as Full, "
            "Chans or Space, or as Floor: norms and head alone. Depth is the number of blocks per "
            "stage.",
            ("E2", "E2-curves"),
        ),
        Experiment(
            "E3",
            "Kinds of frozen filters",
            "Figure 3, section 4.1.3",
            "Full, and Chans with Different filters in every channel, the Same filters in every "
            "channel, Box filters, and Identity filters: in a ResNet with 9, 3 and 1 filters per "
            "channel, and in a ConvMixer. Banks of impulses have a chosen rank and, unsmoothed, a "
            "flat spectrum. Nine independent 3 x 3 filters span all 3 x 3 kernels, so with nine "
            "filters per channel, nothing in between and no bias, the pointwise half alone reaches "
            "any dense kernel: Full, Different and Same are then one class of functions and differ "
            "only in how easily they are optimised. Box and Identity filters, of rank 1, and fewer "
            "filters per channel do restrict the model.",
            ("E3", "E3-equivalence", "E3-curves"),
        ),
        Experiment(
            "E4",
            "Separable ResNets over width",
            "Figure 4, section 4.1.4",
            "Full and Chans against the width of the first stage.",
            ("E4", "E4-curves"),
        ),
        Experiment(
            "E5",
            "ConvMixers over depth",
            "Figure 5, section 4.2.1",
            "ConvMixers trained as Full, Chans, Space or Floor; Chans freezes the patch stem as "
            "well. Depth is the number of blocks.",
            ("E5", "E5-curves"),
        ),
        Experiment(
            "E6",
            "Robustness of frozen filters",
            "Figure 6, section 4.3.2",
            "The models of E2 and E5 under FGSM and PGD-2 (two steps of size epsilon), and models "
            "trained on FGSM samples, on all test images. Models are compared by the radius that "
            "halves their own clean accuracy. FGSM and PGD-2 measure sensitivity rather than "
            "robustness, so a strong attack (many steps and restarts, two losses) and random noise "
            "of the same size are reported beside them, on the first images. A black-box and a "
            "targeted attack test whether gradients are masked.",
            ("E6-depth", "E6-epsilon", "E6-curves"),
        ),
        Experiment(
            "E7",
            "Smoothed frozen filters",
            "Figure 7, section 4.3.3",
            "Chans ConvMixers trained with random filters that were smoothed beforehand, as was "
            "the patch stem, with a tenth of the training images held out. Each filter is "
            "convolved with a Gaussian whose standard deviation is half a pixel times the "
            "smoothing index, then scaled back to its original norm.",
            ("E7", "E7-filters", "E7-curves"),
        ),
        Experiment(
            "E8",
            "Spectra of smoothed filters",
            "Figure 8",
            "The envelopes of those filters at three smoothing indices, and their means over rings "
            "of equal frequency.",
            ("E8", "E8-profile"),
        ),
        Experiment(
            "E9",
            "Spectra of learned filters",
            "Figure 9, section 4.2.2",
            "The envelope and a sample of the filters of each layer of a trained Full ConvMixer of "
            "depth 4 (in the smoke preset depth 1), for the first seed.",
            ("E9-envelopes", "E9-filters", "E9-curves"),
        ),
        Experiment(
            "E10",
            "Pixel un-shuffling",
            "Figures 10, 11, B.2 to B.5, section 4.4",
            "The pixels of every image are shuffled by one fixed permutation; a ConvMixer of patch "
            "size 1 with a linear read-out reconstructs the image. A pixel can only be moved home "
            "from within the receptive field, so sizes are judged where that reaches 90 % of the "
            "pixels. What a PSNR is worth shows beside that of the mean training image.",
            ("E10", "E10-reconstructions", "E10-curves"),
        ),
        Experiment(
            "E11",
            "Parameter counts",
            "Equations 1 to 3, section 3.4",
            "Trainable parameters of each model in each mode, counted from its arrays. The count "
            "of Chans doesn't depend on the kernel size; with m = k^2 filters per channel it "
            "equals that of dense convolutions, and then independent frozen filters restrict "
            "nothing (figure E3-equivalence).",
            (),
        ),
        Experiment(
            "E12",
            "How many spatial filters must be learned?",
            "ours",
            "Accuracy against the share of spatial filters that are learned, from Chans (0) to "
            "Full (1); channel mixing, normalisation and head are always learned. The paper makes "
            "no claim about this.",
            ("E12", "E12-curves"),
        ),
        Experiment(
            "convergence",
            "Are the models trained to the end?",
            "ours",
            "All modes at one size of each family, with a tenth of the training images held out, "
            "and for twice as long: the gate of the claims about accuracy. A schedule that ends at "
            "zero always looks converged in its last epoch.",
            ("convergence-curves",),
        ),
    )
}
