"""The experiments as a reader meets them: what was asked, what is drawn, and which claims they decide."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of the paper, or one of ours.

    Attributes:
        id: "E1" to "E12".
        title: in a few words.
        source: the paper's figure and section.
        about: what was run and what the figure shows.
        figures: the names of its figures, each drawn by ``figures.draw``.
        claims: that it decides.
    """

    id: str
    title: str
    source: str
    about: str
    figures: tuple[str, ...]
    claims: tuple[str, ...] = ()


EXPERIMENTS = {
    experiment.id: experiment
    for experiment in (
        Experiment(
            "E1",
            "Spectral coverage of random filters",
            "Figure 1, section 3.1",
            "Banks of random filters; the envelope is the largest magnitude of any filter's Fourier transform, padded to "
            "512 x 512, frequency zero in the middle. Coverage is the share of frequencies at which it is over half of its "
            "maximum.",
            ("E1",),
            ("7",),
        ),
        Experiment(
            "E2",
            "Separable ResNets over depth",
            "Figure 2, section 4.1.2",
            "Pre-activation ResNets whose every convolution is separable, with Full, Chans or Space learned. Depth is the "
            "number of blocks a stage.",
            ("E2",),
            ("1a", "1c"),
        ),
        Experiment(
            "E3",
            "Which frozen filters",
            "Figure 3, section 4.1.3",
            "A depth-2 ResNet: Full, and Chans with Different filters in every channel, the Same nine in every channel, Box "
            "filters, and Identity.",
            ("E3",),
            ("2",),
        ),
        Experiment(
            "E4",
            "Separable ResNets over width",
            "Figure 4, section 4.1.4",
            "Full and Chans against the width of the first stage.",
            ("E4",),
            ("3",),
        ),
        Experiment(
            "E5",
            "ConvMixers over depth",
            "Figure 5, section 4.2.1",
            "ConvMixers with Full, Chans or Space learned; Chans leaves the patch stem frozen too. Depth is the number of "
            "blocks.",
            ("E5",),
            ("1b",),
        ),
        Experiment(
            "E6",
            "Robustness of frozen filters",
            "Figure 6, section 4.3.2",
            "The models of E2 and E5 under FGSM and PGD-2 (two steps of size epsilon), and models trained on FGSM samples. FGSM "
            "and PGD-2 measure sensitivity rather than robustness, so that a strong attack (many steps and restarts, two "
            "losses) and random noise of the same size stand beside them.",
            ("E6-depth", "E6-epsilon"),
            ("4a", "4b", "4c", "4d"),
        ),
        Experiment(
            "E7",
            "Smoothed frozen filters",
            "Figure 7, section 4.3.3",
            "Chans ConvMixers trained with random filters that were smoothed beforehand: each is convolved with a Gaussian "
            "of half a pixel an index and scaled back to its own norm.",
            ("E7", "E7-filters"),
            ("5",),
        ),
        Experiment(
            "E8",
            "Spectra of smoothed filters",
            "Figure 8",
            "The envelopes of those filters at three indices, and their means over rings of one frequency.",
            ("E8", "E8-profile"),
        ),
        Experiment(
            "E9",
            "Spectra of learned filters",
            "Figure 9, section 4.2.2",
            "The envelope of each layer of a learned depth-4 ConvMixer (in the smoke preset of depth 1), and a sample of its "
            "filters; of the first seed.",
            ("E9-envelopes", "E9-filters"),
        ),
        Experiment(
            "E10",
            "Pixel un-shuffling",
            "Figures 10, 11, B.2 to B.5, section 4.4",
            "One fixed permutation of the pixels of every image; a ConvMixer of patch size 1 with a linear read-out gives the "
            "image back.",
            ("E10", "E10-reconstructions"),
            ("6a", "6b", "6c"),
        ),
        Experiment(
            "E11",
            "Parameter counts",
            "Equations 1 to 3, section 3.4",
            "Trainable parameters of each model in each mode, counted from its arrays. Chans' don't depend on the kernel size; "
            "with m = k^2 filters a channel they equal those of dense convolutions.",
            (),
            ("8",),
        ),
        Experiment(
            "E12",
            "How many spatial filters must be learned?",
            "ours",
            "Accuracy against the share of spatial filters that is learned, from Chans (0) to Full (1); channel mixing, "
            "normalisation and head are always learned. The paper makes no claim about it.",
            ("E12",),
        ),
    )
}
