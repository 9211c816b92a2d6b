"""The experiments as the report presents them: what is run, drawn and decided."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of the paper, or one of ours.

    Attributes:
        id: "E1" to "E15", or "convergence".
        title: a short title.
        source: the paper's figure and section.
        about: what was run and what the figures show.
        figures: names of its figures, drawn by ``pictures.draw``.
        note: what a reader must know to interpret it.
    """

    id: str
    title: str
    source: str
    about: str
    figures: tuple[str, ...]
    note: str = ""


_EQUIVALENCE = """\
In this ResNet, random filters restrict nothing. With nothing between its two halves, a separable
convolution is one dense convolution, whose kernels are the linear combinations of a channel's
filters. Nine random 3 x 3 filters are linearly independent, so they combine to any 3 x 3 kernel,
whatever the stride and the padding. In the CIFAR ResNets (m = 9, stem included), Full, Chans with
Different filters and Chans with Same filters are therefore one class of functions: each network of
one kind is a network of the others, with other pointwise weights. Figure E3-equivalence shows it.
Rewritten with other frozen filters, a network's logits change by rounding alone. Box and Identity
are not in this class: their nine filters are one filter, of rank 1, and of a dense kernel with
random weights they miss 94 % of the norm, as a single random filter does; three random filters miss
82 %. What E2, E3 and E6 compare between Full, Different and Same is therefore how well each can be
optimised, not what it can express: the pointwise weights act through nine filters whose condition
number has the median 26 and the 99th percentile 1,400, so some directions are learned far more
slowly than others. This doesn't hold for the ImageNet stem (7 x 7, m = 9: rank 9 of 49), for m
below 9, or for the ConvMixer, which has one filter per channel and an activation, a norm and a bias
behind it. For Space the mirror holds layer by layer: frozen pointwise weights restrict no
convolution with at most m outputs. But the frozen shortcuts, which have no filters, restrict it at
every width.
"""

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
            "stage. With 9 filters per channel frozen filters restrict nothing here, as E3 "
            "explains: what is compared is how well each can be optimised.",
            ("E2", "E2-curves"),
        ),
        Experiment(
            "E3",
            "Kinds of frozen filters",
            "Figure 3, section 4.1.3",
            "As far as the preset has them: Full, and Chans with Different filters in every "
            "channel, the Same filters in every channel, Box filters, and Identity filters, in a "
            "ResNet with 9, 3 and 1 filters per channel, and in a ConvMixer. Banks of impulses "
            "have a chosen rank and, unsmoothed, a flat spectrum.",
            ("E3", "E3-equivalence", "E3-curves"),
            _EQUIVALENCE,
        ),
        Experiment(
            "E4",
            "Models over width",
            "Figure 4, section 4.1.4",
            "Full and Chans against width, of a ResNet that of its first stage.",
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
            "The models of E2 and E5 under FGSM and PGD-2 (two steps of size epsilon), and, where "
            "the preset has them, models trained on FGSM samples, on all test images. Models are "
            "compared by the radius that halves their own clean accuracy. FGSM and PGD-2 measure "
            "sensitivity rather than robustness, so a strong attack (many steps and restarts, two "
            "losses) and random noise of the same size are reported beside them, on the first "
            "images. A black-box and a targeted attack test whether gradients are masked. Figure "
            "E6-depth averages over all epsilons above 0.",
            ("E6-octaves", "E6-depth", "E6-epsilon", "E6-curves"),
        ),
        Experiment(
            "E7",
            "Smoothed frozen filters",
            "Figure 7, section 4.3.3",
            "Chans ConvMixers trained with random filters that were smoothed beforehand, as was "
            "the patch stem, with a tenth of the training images held out. Each filter is "
            "convolved with a Gaussian whose standard deviation is half a pixel times the "
            "smoothing index, then scaled back to its original norm. Claim 5 "
            "compares index 0 with the largest index that costs less than a point of accuracy on "
            "the held-out images. The filters are shown in E8.",
            ("E7", "E7-curves"),
        ),
        Experiment(
            "E8",
            "Spectra of smoothed filters",
            "Figure 8",
            "The filters of E7 and their envelopes at three smoothing indices, and the envelopes' "
            "means over rings of equal frequency.",
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
            "pixels. What a PSNR is worth shows beside those of the mean training image and "
            "of linear regression, which knows the permutation, copies what is within reach and "
            "predicts the rest from it; where everything is within reach it is exact "
            "and has no line. Whether longer training changes the difference isn't tested.",
            ("E10", "E10-reconstructions", "E10-curves"),
        ),
        Experiment(
            "E11",
            "Parameter counts",
            "Equations 1 to 3, section 3.4",
            "Trainable parameters of each model in each mode, counted from its arrays. The count "
            "of Chans doesn't depend on the kernel size; with m = k^2 filters per channel it "
            "equals that of dense convolutions.",
            (),
            _EQUIVALENCE,
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
            "E13",
            "The lattice of roles",
            "ours",
            "What learning spatial mixing, channel mixing or both adds to norms and head, in each "
            "family of models at one size; of MetaFormers, for each mixer of tokens. Parallel "
            "sides of a lattice learn the same role, once without and once with the other; were "
            "they parallel in accuracy, the roles would add up, and Full would lie on the hollow "
            "mark. The first figure puts all families on one axis. Dashes are seeds.",
            ("E13-overview", "E13", "E13-curves"),
        ),
        Experiment(
            "E14",
            "Which frozen filters suffice?",
            "ours; filters after arXiv 2210.03651 (covariance), 2509.11711 (Gaussian derivatives) "
            "and 2412.16751 (learned elsewhere)",
            "ConvMixers with frozen filters of several kinds, between Floor and Full: Different "
            "random ones, the Same for all channels, cosines (DCT), impulses, samples of a "
            "Gaussian with a covariance, eight derivatives of a Gaussian, and filters learned in "
            "another run. Each is compared with Different, seed by seed.",
            ("E14", "E14-curves"),
        ),
        Experiment(
            "E15",
            "The law of the gap",
            "ours",
            "The ratio of the error rates of Chans and Full against width, depth and length of "
            "training, from the runs of E2, E4, E5 and of the convergence gate, whose errors are "
            "on held-out training images. A ratio compares models at any accuracy: a falling line "
            "means that the gap closes even in proportion to the errors.",
            ("E15",),
        ),
        Experiment(
            "convergence",
            "Are the models trained to the end?",
            "ours",
            "All modes at one size of each family, with a tenth of the training images held out, "
            "and for twice as long: the gate of the claims about accuracy. A schedule that ends at "
            "zero always looks converged in its last epoch. The model of a family, with Different "
            "filters, stands for the others; where few images are held out, one of them is worth "
            "more than the gate allows.",
            ("convergence-curves",),
        ),
    )
}
