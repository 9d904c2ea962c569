"""Which classes and functions of Keras a file or a setting may name: they compute on tensors and do nothing else.

The lists are written out, so that a class that a new version of Keras adds is not allowed before somebody has read it.
A `.keras` file and the `layer` of an augmentation are checked against them.
"""

LAYERS = frozenset(
    """
    AugMix AutoContrast CenterCrop ContrastLimitedAdaptiveHistogramEqualization CutMix Equalization MaxNumBoundingBoxes
    MixUp RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation
    RandomZoom Resizing Solarization
    Activation ActivityRegularization ELU LeakyReLU PReLU ReLU Softmax
    AdditiveAttention Attention GroupQueryAttention MultiHeadAttention
    Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose DepthwiseConv1D DepthwiseConv2D
    SeparableConv1D SeparableConv2D
    Dense EinsumDense Embedding Identity InputLayer Masking ReversibleEmbedding
    Add Average Concatenate Dot Maximum Minimum Multiply Subtract
    BatchNormalization GroupNormalization LayerNormalization RMSNormalization SpectralNormalization UnitNormalization
    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D
    AdaptiveMaxPooling2D AdaptiveMaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D MaxPooling1D MaxPooling2D MaxPooling3D
    CategoryEncoding Discretization HashedCrossing Hashing IntegerLookup MelSpectrogram Normalization Pipeline Rescaling
    STFTSpectrogram StringLookup TextVectorization
    AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D SpatialDropout3D
    Cropping1D Cropping2D Cropping3D Flatten Permute RepeatVector Reshape UpSampling1D UpSampling2D UpSampling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
    Bidirectional ConvLSTM1D ConvLSTM2D ConvLSTM3D GRU GRUCell LSTM LSTMCell RNN SimpleRNN SimpleRNNCell StackedRNNCells
    TimeDistributed
    """.split()
)
"""Classes of `keras.layers`. Not among them: `Lambda`, `TFSMLayer`, and the wrappers of JAX, Flax and Torch."""

KERAS_CV_LAYERS = frozenset(
    """
    AugMix AutoContrast ChannelShuffle Equalization FourierMix Grayscale GridMask JitteredResize Posterization
    RandAugment RandomAspectRatio RandomBrightness RandomChannelShift RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomCropAndResize RandomCutout RandomFlip RandomGaussianBlur RandomHue RandomJpegQuality
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom Rescaling Resizing
    Solarization
    """.split()
)
"""Classes of `keras_cv.layers` that change images one by one. They are allowed in a setting, and not in a file."""

CONFIGURED_LAYERS = (LAYERS | KERAS_CV_LAYERS) - {"IntegerLookup", "StringLookup", "TextVectorization"}
"""What the `layer` of an augmentation may name: not the layers that can read a vocabulary from a file."""

OTHER_CLASSES = {
    "keras": frozenset("Functional Model Sequential".split()),
    "keras.initializers": frozenset(
        """
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
        RandomNormal RandomUniform STFT TruncatedNormal VarianceScaling Zeros IdentityInitializer
        OrthogonalInitializer STFTInitializer
        """.split()
    ),
    "keras.regularizers": frozenset("L1 L1L2 L2 OrthogonalRegularizer".split()),
    "keras.constraints": frozenset("MaxNorm MinMaxNorm NonNeg UnitNorm".split()),
    "keras.quantizers": frozenset(
        """
        AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig Int8QuantizationConfig
        """.split()
    ),
    "keras.dtype_policies": frozenset(
        """
        DTypePolicy DTypePolicyMap FloatDTypePolicy Int4DTypePolicy QuantizedDTypePolicy QuantizedFloat8DTypePolicy
        """.split()
    ),
    "keras.random": frozenset(["SeedGenerator"]),
    "keras.src.applications.convnext": frozenset(["LayerScale", "StochasticDepth"]),
    "keras.src.applications.inception_resnet_v2": frozenset(["CustomScaleLayer"]),
}
"""Classes by module that the configuration of a model may name beside layers and operations."""

OPERATION_MODULES = ("numpy", "nn", "math", "image", "linalg", "einops")
"""Modules of `keras.ops` whose operations take tensors and plain values, except those of `CALLING_OPERATIONS`."""

CALLING_OPERATIONS = frozenset(["JVP"])
"""Operations of these modules that call a function that they are given."""

CORE_OPERATIONS = frozenset(
    "Cast ConvertToTensor SaturateCast Scatter ScatterUpdate Slice SliceUpdate StopGradient Unstack".split()
)
"""Operations of `keras.ops.core`; the others call functions that they are given."""

FUNCTIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid
    sparsemax squareplus swish tanh tanh_shrink threshold
    """.split()
)
"""The functions that a file may name: activations. Initializers and regularizers are classes."""
