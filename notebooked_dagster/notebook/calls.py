"""What well-known calls mean: the knowledge that classification and def-use analysis share.

Everything here is data and small predicates over names. Adding a library is adding a line.
"""

from __future__ import annotations

import builtins
import re
from functools import lru_cache


class _Memo:
    """A pattern that remembers its answers: a notebook asks about the same few dotted names again and again."""

    def __init__(self, pattern: str) -> None:
        compiled = re.compile(pattern)
        self.match = lru_cache(maxsize=4096)(compiled.match)
        self.search = lru_cache(maxsize=4096)(compiled.search)


#: Names that exist without being defined: Python's own, and what IPython puts into a notebook's namespace.
IPYTHON_NAMES = frozenset(
    {"get_ipython", "display", "In", "Out", "exit", "quit", "_", "__", "___", "_ih", "_oh", "_dh"}
)
BUILTIN_NAMES = frozenset(dir(builtins)) | IPYTHON_NAMES | {
    "__file__", "__name__", "__doc__", "__class__", "__builtins__", "__path__", "__spec__", "__loader__",
    "__package__", "__annotations__", "WindowsError",
}  # fmt: skip

#: Methods that change the object they are called on, whatever its type.
MUTATING_METHODS = frozenset(
    [
        "append",
        "appendleft",
        "extend",
        "insert",
        "pop",
        "popleft",
        "popitem",
        "remove",
        "discard",
        "clear",
        "update",
        "setdefault",
        "add",
        "sort",
        "reverse",
        "fit",
        "partial_fit",
        "fit_transform",
        "fit_resample",
        "fit_generator",
        "train_on_batch",
        "compile",
        "build",
        "load_weights",
        "set_weights",
        "load_state_dict",
        "set_params",
        "requires_grad_",
        "eval",
        "train",
        "zero_grad",
        "step",
        "backward",
        "add_module",
        "register_buffer",
        "register_parameter",
        "register_module",
        "register_forward_hook",
        "add_loss",
        "add_metric",
        "adapt",
        "load_model",
        "load_params",
        "fit_one_cycle",
        "fine_tune",
        "freeze",
        "unfreeze",
        "freeze_to",
        "learn",
        "minimize",
        "apply_gradients",
        "assign",
        "assign_add",
        "assign_sub",
        "set_value",
        "put",
        "seek",
        "write",
        "writelines",
        "write_text",
        "write_bytes",
        "close",
        "open",
        "add_argument",
        "add_flow",
        "add_edge",
        "add_node",
        "add_edges_from",
        "add_nodes_from",
        "add_seasonality",
        "add_regressor",
        "add_country_holidays",
        "add_layer",
        "add_documents",
        "add_texts",
        "seed",
        "shuffle",
        "set_index_inplace",
        "fill",
        "resize",
        "itemset",
        "setflags",
        "enqueue",
        "push",
        "heappush",
        "subscribe",
        "register",
        "build_vocab",
        "set_vocab",
        "add_special_tokens",
        "resize_token_embeddings",
        "set_format",
        "to_empty",
        "fit_on_texts",
        "set_weight",
        "set_input",
        "set_output",
        "connect",
        "execute",
        "commit",
        "cursor",
        "start",
        "run",
        "setup",
        "prepare",
        "requires_grad_",
        "half_",
        "double_",
        "cuda_",
        "cpu_",
        "gradient_checkpointing_enable",
        "enable_input_require_grads",
        "merge_adapter",
        "symmetric_difference_update",
        "difference_update",
        "intersection_update",
        "rotate",
        "extendleft",
        "move_to_end",
        "subtract",
    ]
)
#: Of these, the ones that change a *learned* thing: they also reach what the object was built around
#: (``Adam(model.parameters())``, ``Trainer(model=model)``, ``Pipeline([("m", model)])``).
TRAINING_METHODS = frozenset(
    [
        "fit",
        "partial_fit",
        "fit_generator",
        "train_on_batch",
        "fit_one_cycle",
        "fine_tune",
        "learn",
        "minimize",
        "apply_gradients",
        "step",
        "backward",
        "train",
        "train_model",
        "training_step",
        "fit_resample",
    ]
)
#: Methods that return something and leave their object alone: a discarded call of one is a look, not a change.
PURE_METHODS = frozenset(
    [
        "head",
        "tail",
        "describe",
        "info",
        "sample",
        "value_counts",
        "nunique",
        "unique",
        "isnull",
        "isna",
        "notnull",
        "notna",
        "sum",
        "mean",
        "median",
        "min",
        "max",
        "std",
        "var",
        "corr",
        "cov",
        "count",
        "groupby",
        "agg",
        "aggregate",
        "pivot_table",
        "pivot",
        "crosstab",
        "plot",
        "hist",
        "boxplot",
        "scatter",
        "bar",
        "show",
        "imshow",
        "summary",
        "print_summary",
        "shape",
        "copy",
        "tolist",
        "to_string",
        "to_markdown",
        "to_html",
        "items",
        "keys",
        "values",
        "get",
        "index",
        "join",
        "split",
        "strip",
        "lower",
        "upper",
        "replace",
        "startswith",
        "endswith",
        "format",
        "astype",
        "reshape",
        "ravel",
        "flatten",
        "squeeze",
        "transpose",
        "numpy",
        "item",
        "cpu",
        "detach",
        "size",
        "dim",
        "predict",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "transform",
        "inverse_transform",
        "score",
        "evaluate",
        "score_samples",
        "get_params",
        "get_feature_names_out",
        "feature_names",
        "query",
        "nlargest",
        "nsmallest",
        "sort_values",
        "sort_index",
        "reset_index",
        "set_index",
        "rename",
        "drop",
        "dropna",
        "fillna",
        "drop_duplicates",
        "duplicated",
        "merge",
        "concat",
        "apply",
        "map",
        "applymap",
        "filter",
        "pipe",
        "explode",
        "melt",
        "stack",
        "unstack",
        "quantile",
        "round",
        "abs",
        "rolling",
        "resample",
        "diff",
        "cumsum",
        "cumprod",
        "shift",
        "mode",
        "idxmax",
        "idxmin",
        "argmax",
        "argmin",
        "argsort",
        "nonzero",
        "any",
        "all",
        "isin",
        "between",
        "select_dtypes",
        "memory_usage",
        "equals",
        "loc",
        "iloc",
        "xs",
        "at",
        "iat",
        "conf_int",
        "params",
        "pvalues",
        "named_parameters",
        "parameters",
        "state_dict",
        "children",
        "modules",
        "collect",
        "take",
        "first",
        "printSchema",
        "schema",
        "columns",
        "dtypes",
        "dot",
        "conj",
        "real",
        "imag",
        "T",
        "todense",
        "toarray",
        "getnnz",
        "plot_model",
        "style",
        "read",
        "getvalue",
        "cv_results_",
        "best_params_",
        "best_score_",
        "savefig",
        "set_title",
        "set_xlabel",
        "set_ylabel",
        "set_xlim",
        "set_ylim",
        "legend",
        "render",
        "most_common",
        "most_similar",
        "similarity",
        "forward",
        "vocabulary_",
        "get_support",
        "ranking_",
        "kneighbors",
        "get_n_leaves",
        "get_depth",
        "get_layer",
        "get_weights",
        "get_config",
        "output_shape",
        "input_shape",
        "to_json",
        "to_dict",
        "to_numpy",
        "to_frame",
    ]
)
#: Functions that change an argument: the position of the argument they change.
ARGUMENT_MUTATORS: dict[str, int] = {
    "random.shuffle": 0, "numpy.random.shuffle": 0, "heapq.heappush": 0, "heapq.heappop": 0, "heapq.heapify": 0,
    "bisect.insort": 0, "setattr": 0, "delattr": 0, "numpy.fill_diagonal": 0, "numpy.put": 0, "numpy.copyto": 0,
    "numpy.place": 0, "next": 0, "torch.nn.utils.clip_grad_norm": 0, "exec": 1,
    "torch.nn.utils.prune.l1_unstructured": 0, "torch.nn.utils.prune.random_unstructured": 0,
}  # fmt: skip

#: Modules that only draw, log or look; calls of them are not work.
PLOT_ROOTS = frozenset(
    [
        "matplotlib",
        "seaborn",
        "plotly",
        "bokeh",
        "altair",
        "pylab",
        "graphviz",
        "pydot",
        "missingno",
        "yellowbrick",
        "plotnine",
        "folium",
        "wordcloud",
        "cufflinks",
        "holoviews",
        "hvplot",
        "pydotplus",
        "dtreeviz",
        "chart_studio",
        "ggplot",
        "mpl_toolkits",
        "ipywidgets",
        "mplfinance",
        "torchviz",
        "visualkeras",
        "pyLDAvis",
        "adjustText",
        "squarify",
        "mpld3",
        "sweetviz",
        "pandas_profiling",
        "ydata_profiling",
        "geoplot",
        "venn",
        "prettytable",
        "tabulate",
        "IPython",
        "scikitplot",
        "autoviz",
        "dataprep",
        "lux",
        "fig_code",
        "mglearn",
    ]
)
PLOT_METHODS = frozenset(
    [
        "plot",
        "hist",
        "boxplot",
        "scatter",
        "bar",
        "barh",
        "imshow",
        "show",
        "pie",
        "contour",
        "contourf",
        "pcolormesh",
        "fill_between",
        "axvline",
        "axhline",
        "set_title",
        "set_xlabel",
        "set_ylabel",
        "set_xlim",
        "set_ylim",
        "set_xticks",
        "set_yticks",
        "set_xticklabels",
        "set_yticklabels",
        "legend",
        "savefig",
        "tight_layout",
        "subplots_adjust",
        "add_subplot",
        "add_axes",
        "colorbar",
        "annotate",
        "suptitle",
        "figure",
        "subplots",
        "subplot",
        "plot_importance",
        "plot_tree",
        "plot_components",
        "plot_diagnostics",
        "plot_predict",
        "plot_metrics",
        "plot_decision_regions",
        "plot_confusion_matrix",
        "plot_model",
        "heatmap",
        "pairplot",
        "distplot",
        "countplot",
        "jointplot",
        "lmplot",
        "violinplot",
        "stripplot",
        "kdeplot",
        "barplot",
        "lineplot",
        "scatterplot",
        "regplot",
        "catplot",
        "histplot",
        "show_batch",
        "show_results",
        "plot_losses",
        "recorder",
        "lr_find",
        "plot_top_losses",
        "update_layout",
        "update_traces",
        "add_trace",
        "iplot",
        "set_axis_off",
        "matshow",
        "quiver",
        "hexbin",
        "errorbar",
        "stem",
        "step_plot",
        "streamplot",
        "text",
        "grid",
        "xlabel",
        "ylabel",
        "title",
        "xlim",
        "ylim",
        "xticks",
        "yticks",
        "axis",
        "invert_yaxis",
        "invert_xaxis",
        "set_aspect",
        "tick_params",
        "render",
        "plot_surface",
        "scatter3D",
        "plot3D",
        "add_patch",
    ]
)
LOOK_METHODS = frozenset(
    [
        "head",
        "tail",
        "describe",
        "info",
        "value_counts",
        "nunique",
        "unique",
        "isnull",
        "isna",
        "summary",
        "print_summary",
        "corr",
        "shape",
        "memory_usage",
        "printSchema",
        "display",
        "sample",
        "items",
        "crosstab",
        "most_common",
        "isnull",
        "show",
        "pprint",
        "dtypes",
        "columns",
    ]
)
LOOK_FUNCTIONS = frozenset(
    [
        "print",
        "display",
        "help",
        "type",
        "dir",
        "len",
        "pprint",
        "pprint.pprint",
        "id",
        "isinstance",
        "hasattr",
        "callable",
        "vars",
        "locals",
        "globals",
        "IPython.display.display",
        "IPython.display.Image",
        "IPython.display.HTML",
        "torchinfo.summary",
        "torchsummary.summary",
        "tensorflow.keras.utils.plot_model",
        "sys.getsizeof",
        "inspect.getsource",
        "warnings.warn",
        "platform.python_version",
    ]
)

METRIC_FUNCTIONS = _Memo(
    r"""(?x)(?:^|\.)(?:
        \w*accuracy\w* | classification_report | confusion_matrix | multilabel_confusion_matrix | \w*f1\w*|\w*f_beta\w*
      | fbeta_score | precision_\w+ | recall_\w+ | roc_auc\w* | roc_curve | auc | auroc | average_precision\w* | log_loss | brier\w*
      | mean_squared_\w+ | mean_absolute_\w+ | root_mean_\w+ | median_absolute_error | max_error | explained_variance_score
      | r2_score | r2score | rmse | mse | mae | mape | rmsle | smape | matthews_corrcoef | cohen_kappa_score | jaccard_\w+
      | hamming_loss | silhouette_\w+ | davies_bouldin_score | calinski_harabasz_score | adjusted_\w+_score
      | normalized_mutual_info_score | homogeneity_\w+ | completeness_score | v_measure_score | mutual_info_score
      | adjusted_mutual_info_score | balanced_\w+_score | ndcg_score | cross_val_score | cross_validate | cross_val_predict
      | calculate_metrics | compute_metrics | evaluate | evaluate_model | eval_model | evaluate_\w+ | test_model | bleu_score\w* | corpus_bleu
      | sentence_bleu | rouge\w* | word_error_rate | wer | mean_pinball_loss | top_k_\w+ | concordance_index | permutation_importance
      | eval_forecasting_metrics | get_metrics | print_metrics | score_model | model_score | print_score
    )$"""
)
METRIC_METHODS = frozenset(
    ["score", "evaluate", "evaluate_generator", "best_score_", "validate", "test", "get_rdataset_score"]
)
PREDICT_METHODS = frozenset(
    [
        "predict",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "predict_classes",
        "predict_generator",
        "predict_on_batch",
        "forecast",
        "get_forecast",
        "get_prediction",
        "generate",
        "transform_new",
        "recommend",
        "infer",
        "make_future_dataframe",
        "predict_mean",
        "predict_batch",
        "score_samples",
        "kneighbors",
        "get_preds",
        "detect_objects",
        "predict_step",
        "staged_predict",
        "predictions",
    ]
)
FIT_METHODS = frozenset(
    [
        "fit",
        "partial_fit",
        "fit_predict",
        "fit_generator",
        "train_on_batch",
        "fit_one_cycle",
        "fine_tune",
        "fit_resample",
        "learn",
        "minimize",
        "train",
        "train_model",
        "fit_regularized",
        "fit_constrained",
        "fit_cycle",
        "trainEpochs",
        "train_epoch",
        "fit_sample",
        "fitDataset",
    ]
)
#: Functions that train and return the trained thing.
TRAIN_FUNCTIONS = frozenset(
    ["lightgbm.train", "xgboost.train", "catboost.train", "lightgbm.cv", "xgboost.cv", "pmdarima.auto_arima", "pmdarima.arima.auto_arima", "pyramid.arima.auto_arima", "numpy.polyfit", "scipy.optimize.curve_fit", "scipy.stats.linregress", "gensim.models.Word2Vec", "gensim.models.word2vec.Word2Vec", "gensim.models.FastText", "gensim.models.Doc2Vec", "gensim.models.LdaModel", "gensim.models.ldamodel.LdaModel", "gensim.models.LdaMulticore", "gensim.models.fasttext.FastText", "gensim.models.doc2vec.Doc2Vec", "pymc.sample", "pymc3.sample", "arviz.sample", "numpy.linalg.lstsq", "scipy.linalg.lstsq", "scipy.optimize.nnls", "nltk.NaiveBayesClassifier.train", "nltk.classify.NaiveBayesClassifier.train", "fasttext.train_supervised", "fasttext.train_unsupervised", "pycaret.classification.create_model", "pycaret.regression.create_model", "pycaret.classification.compare_models", "pycaret.regression.compare_models", "pycaret.classification.tune_model", "pycaret.regression.tune_model", "pyspark.mllib.recommendation.ALS.train"]
)  # fmt: skip
CROSS_VALIDATION = frozenset(
    {"cross_val_score", "cross_validate", "cross_val_predict", "learning_curve", "validation_curve", "cv"}
)

#: Classes whose ``fit`` prepares data instead of learning the answer. Matched by the class's own name.
TRANSFORMER_CLASS = _Memo(
    r"""(?x)^(?:\w*Scaler | \w*Encoder | \w*Imputer | \w*Binarizer | \w*Vectorizer | \w*Transformer | Normalizer
      | PolynomialFeatures | SplineTransformer | KBinsDiscretizer | \w*Discretizer | PCA | IncrementalPCA | KernelPCA | SparsePCA
      | RandomizedPCA | TruncatedSVD | FactorAnalysis | FastICA | NMF | TSNE | UMAP | Isomap | LocallyLinearEmbedding | MDS | SpectralEmbedding
      | SelectKBest | SelectPercentile | SelectFromModel | VarianceThreshold | RFE | RFECV | GenericUnivariateSelect
      | ColumnTransformer | FeatureUnion | FeatureHasher | DictVectorizer | LabelEncoder | Tokenizer | \w*Tokenizer
      | SMOTE\w* | ADASYN | RandomOverSampler | RandomUnderSampler | \w*Sampler | NearMiss | TomekLinks | EditedNearestNeighbours
      | ImageDataGenerator | TextVectorization | Normalization | StringLookup | IntegerLookup | CategoryEncoding | Discretization
      | RBFSampler | Nystroem | GaussianRandomProjection | SparseRandomProjection | Word2VecTransformer | StringIndexer
      | OneHotEncoderEstimator | VectorAssembler | \w*Indexer | CountVectorizer | MeanEncoder | TargetEncoder | DataPreprocessor
      | LabelPowerset | IterativeImputer | MissForest | Preprocessor | BoxCox\w* | YeoJohnson\w* | Winsorizer | \w*DropFeatures
      | RandomTreesEmbedding | AttributesAdder | \w*Selector | DateFormatter | StratifiedShuffleSplit | KFold
    )$"""
)
#: Dimension reducers and embedders may be the point of the notebook: they train where nothing else does.
REDUCER_CLASS = _Memo(
    r"^(?:\w*PCA|TruncatedSVD|NMF|FastICA|FactorAnalysis|TSNE|UMAP|Isomap|LocallyLinearEmbedding|MDS)$"
)
#: Capitalised calls that hold data rather than learn.
DATA_CLASS = _Memo(
    r"""(?x)^(?:DataFrame | Series | Index | Path | PosixPath | Counter | OrderedDict | defaultdict | Image | Timestamp
      | DatetimeIndex | MultiIndex | Categorical | Timedelta | DataLoader | \w*DataLoader | Dataset | \w*Dataset | TensorDataset
      | Tensor | FloatTensor | LongTensor | IntTensor | Variable | Compose | Bunch | DMatrix | QuantileDMatrix | Pool | Fraction
      | Decimal | StringIO | BytesIO | ZipFile | TarFile | Markdown | HTML | Document | BeautifulSoup | Random | RandomState
      | ArgumentParser | Thread | Lock | Queue | Process | Figure | GridSpec | Line2D | Rectangle | Circle | Normalize
      | \w*Iterator | \w*Generator | \w*Sampler | \w*Fold | \w*Split | TimeSeriesSplit | Poly | Symbol | Matrix | SparkSession
      | ImageFolder | MNIST | FashionMNIST | CIFAR10 | CIFAR100 | EMNIST | KMNIST | SVHN | STL10 | CelebA | Field | \w*Field | Example
      | DataBunch | DataBlock | \w*DataLoaders | TabularPandas | Reader | ToTensor | Resize\w* | Random\w+Crop | Random\w+Flip
      | CenterCrop | Grayscale | Lambda | ColorJitter | Error | \w*Error | \w*Exception | \w*Warning)$"""
)
#: Base classes and constructors of models, matched on the resolved dotted name.
MODEL_BASE = _Memo(
    r"""(?x)(?:^|\.)(?:Module | LightningModule | Model | Layer | Sequential | BaseEstimator | ClassifierMixin | RegressorMixin
      | ClusterMixin | PreTrainedModel | ScriptModule | Network | Block | HybridBlock | Estimator | PythonModel | Chain | Cell
      | MessagePassing | BasePolicy | BaseFeaturesExtractor | FlaxModel | Base\w*Model | nn\.\w+ )$"""
)
MODEL_NAME = _Memo(
    r"""(?x)(?:\w*Regressor | \w*Regression | \w*RegressionCV | \w*Regressor\w* | \w*Classifier\w* | SVC | SVR | LinearSVC | LinearSVR | NuSVC | OneClassSVM
      | Ridge | RidgeCV | Lasso | LassoCV | LassoLars\w* | ElasticNet\w* | Lars\w* | BayesianRidge | ARDRegression | Perceptron | SGD\w+
      | \w+NB | KMeans\w* | MiniBatchKMeans | DBSCAN | OPTICS | MeanShift | AgglomerativeClustering | SpectralClustering | Birch
      | AffinityPropagation | GaussianMixture | BayesianGaussianMixture | HDBSCAN | IsolationForest | LocalOutlierFactor | EllipticEnvelope
      | KernelDensity | NearestNeighbors | LinearDiscriminantAnalysis | QuadraticDiscriminantAnalysis | GridSearchCV
      | RandomizedSearchCV | Halving\w+SearchCV | BayesSearchCV | Pipeline | make_pipeline | make_imb_pipeline | Stacking\w+ | Voting\w+
      | Bagging\w+ | AdaBoost\w+ | HistGradient\w+ | GradientBoosting\w+ | OneVsRest\w+ | OneVsOne\w+ | MultiOutput\w+ | Calibrated\w+
      | XGB\w+ | LGBM\w+ | CatBoost\w* | ExplainableBoosting\w+ | TabNet\w+ | Prophet | NeuralProphet | ARIMA | SARIMAX | AutoReg | VAR | VARMAX | ARMA
      | ExponentialSmoothing | SimpleExpSmoothing | Holt | ETSModel | UnobservedComponents | AutoARIMA | OLS | GLS | WLS | GLM | Logit
      | Probit | MNLogit | MixedLM | Poisson | NegativeBinomial | QuantReg | RLM | PHReg | CoxPHFitter | KaplanMeierFitter | \w+Fitter
      | Sequential | Model | Functional | \w*Net | \w*Network | \w*CNN | \w*RNN | \w*LSTM | \w*GRU | \w*GAN | \w*VAE | \w*Autoencoder
      | \w*AutoEncoder | \w*Model | \w*Classifier | \w*Regressor | \w*Forest\w* | Word2Vec | Doc2Vec | FastText | LdaModel | LdaMulticore
      | LatentDirichletAllocation | SVD | SVDpp | KNNBasic | KNNWithMeans | BaselineOnly | SlopeOne | CoClustering | ALS | NMFRecommender
      | AutoModel\w* | Bert\w+ | GPT2\w* | T5\w* | \w+ForSequenceClassification | \w+ForTokenClassification | \w+LMHeadModel | YOLO | TabularPredictor
      | \w*Learner | cnn_learner | vision_learner | tabular_learner | text_classifier_learner | unet_learner | language_model_learner
      | collab_learner | create_cnn | DQN | PPO | A2C | SAC | TD3 | DDPG | \w*Agent | GaussianProcess\w+ | MLP\w+ | KNeighbors\w+ | Huber\w+ | TheilSen\w+
      | RANSAC\w+ | Tweedie\w+ | Dummy\w+ | DecisionTree\w+ | ExtraTree\w* | PLSRegression | IsotonicRegression | KernelRidge
      | smf\.\w+ | formula\.api\.\w+ | auto_arima | LightFM | TPOT\w+ | H2O\w+Estimator | AutoML | TransformedTargetRegressor | SuperLearner | GAM\w* | Linear\w*GAM | ClassifierChain
    )$"""
)
OPTIMIZER_CLASS = _Memo(
    r"^(?:Adam\w*|SGD|RMSprop|RMSProp|Adagrad|Adadelta|LBFGS|NAdam|Nadam|RAdam|Rprop|Ftrl|AdaBelief|Lamb|Lookahead|ASGD|SparseAdam"
    r"|\w*Optimizer|\w*LR|\w*Scheduler|CyclicLR|OneCycleLR|ReduceLROnPlateau|GradScaler|\w*Schedule)$"
)
LOSS_CLASS = _Memo(r"^(?:\w*Loss|\w*Criterion|\w*Crossentropy|MeanSquaredError|MeanAbsoluteError|Huber)$")
HOLDER_CLASS = _Memo(
    r"^(?:\w*Trainer|Trainer|\w*Learner|\w*Runner|Accelerator|\w*Engine|create_supervised_\w+)$"
)
CONTAINER_LAYERS = _Memo(r"^(?:torch\.nn|keras\.layers|tensorflow\.keras\.layers)\.")

LOAD_FUNCTIONS = _Memo(
    r"""(?x)(?:^|\.)(?:read_\w+ | load_\w+ | fetch_\w+ | loadtxt | genfromtxt | load | open | imread | urlopen | get_data_home
      | make_(?:classification|regression|blobs|moons|circles|friedman\d|swiss_roll|s_curve|gaussian_quantiles|multilabel_classification|sparse_\w+)
      | from_csv | load_data | load_dataset | get_rdataset | ImageFolder | flow_from_\w+ | image_dataset_from_directory | image_folder
      | text_dataset_from_directory | from_folder | from_df | from_name_func | from_generator | from_tensor_slices | untar_data | download\w*
      | urlretrieve | DataLoader | CSVLogger | data_home | load_boston | listdir | glob | walk | DataReader | yf_download | get_file | read)$"""
)
SAVE_FUNCTIONS = _Memo(
    r"""(?x)(?:^|\.)(?:joblib\.dump | pickle\.dump | cPickle\.dump | dill\.dump | torch\.save | dump_model | save_model | save_weights | save_pretrained
      | save_state_dict | save | export | save_model_to_file | log_model | torch\.jit\.save | torch\.onnx\.export | write_model | push_to_hub
      | booster\.save_model | to_json_file | savetxt | to_csv | to_excel | to_parquet | to_pickle | to_feather | to_sql | savez\w* | imwrite | imsave
      | to_json_lines | save_as_pickle | dump)$"""
)
MODEL_LOADERS = _Memo(
    r"(?:^|\.)(?:load_model|joblib\.load|pickle\.load|torch\.load|load_learner|load_from_checkpoint|from_saved_model|read_model|jit\.load)$"
)

#: Calls and assignments that set up the process for all that follows; kept wherever work follows them.
AMBIENT = _Memo(
    r"""(?x)^(?:random\.seed | numpy\.random\.seed | numpy\.random\.set_state | torch\.manual_seed | torch\.random\.manual_seed | torch\.cuda\.manual_seed\w* | torch\.mps\.manual_seed
      | tensorflow\.(?:compat\.v1\.)?(?:random\.)?set_(?:random_)?seed | (?:tensorflow\.)?keras\.utils\.set_random_seed | .*seed_everything | .*\bset_seeds? | .*\bset_random_seed | .*\bseed_all | .*fix_seed\w* | .*set_all_seeds
      | torch\.set_\w+ | torch\.use_deterministic_algorithms | torch\.backends\..* | torch\.autograd\.set_\w+ | torch\.multiprocessing\.set_\w+
      | tensorflow\.config\..* | tensorflow\.compat\.v1\.(?:enable|disable)_\w+ | tensorflow\.(?:enable|disable)_\w+ | (?:tensorflow\.)?keras\.(?:backend|mixed_precision|config)\.\w+
      | tensorflow\.keras\.backend\.\w+ | tensorflow\.keras\.mixed_precision\.\w+ | jax\.config\.\w+ | mxnet\.random\.seed | mx\.random\.seed
      | sys\.setrecursionlimit | sys\.path\.\w+ | os\.chdir | os\.makedirs | os\.mkdir | os\.environ\.\w+ | os\.putenv | nltk\.download | urllib\.request\.(?:urlretrieve|install_opener) | wget\.download
      | warnings\.\w+ | locale\.setlocale | tqdm\.(?:\w+\.)*pandas | .*tqdm\.pandas | pandas\.(?:set_option|options\..*) | numpy\.(?:seterr|set_printoptions) | decimal\.getcontext
      | pyro\.(?:set_rng_seed|clear_param_store|enable_validation) | sympy\.init_printing | logging\..* | csv\.field_size_limit | matplotlib\.use | gym\.register | gc\.collect
      | sklearn\.(?:set_config|utils\.\w+) | dotenv\.load_dotenv | shutil\.\w+ | zipfile\..* | tarfile\..* | socket\.setdefaulttimeout | os\.system | subprocess\.\w+
      | ssl\.\w+ | datasets\.disable_\w+ | transformers\.logging\.\w+ | transformers\.set_seed | pytorch_lightning\.seed_everything | lightning\.seed_everything | pl\.seed_everything
      | gdown\.\w+ | kaggle\.api\.\w+ | opendatasets\.download | od\.download | mlflow\.\w+ | fastai\.\w+\.set_seed)$"""
)
#: Of the ambient ones, those that only change what is shown.
AMBIENT_DISPLAY = _Memo(
    r"^(?:warnings\.warn|pandas\.(?:set_option|options\.display\..*)|numpy\.set_printoptions|sympy\.init_printing|torch\.set_printoptions|matplotlib\.use"
    r"|gc\.collect|mlflow\.\w+|logging\.(?:info|debug|warning|error)|torch\.backends\.\w+\.is_\w+|subprocess\.\w+|os\.system|tensorflow\.config\.(?:list_\w+|experimental\.list_\w+)"
    r"|tensorflow\.config\.get_\w+|tensorflow\.keras\.backend\.(?:int_shape|eval|get_\w+))$"
)
#: Of the ambient ones, those that fetch or unpack files: kept only where what is kept reads what they fetched.
FETCHING = _Memo(
    r"^(?:urllib\.request\.urlretrieve|wget\.download|gdown\.\w+|kaggle\.\w+(?:\.\w+)*|opendatasets\.download|od\.download|shutil\.\w+"
    r"|zipfile\..*|tarfile\..*)$"
)
SEED_METHODS = frozenset(
    {"seed", "manual_seed", "set_seed", "set_random_seed", "manual_seed_all", "seed_everything"}
)
#: Imported for what importing them does, not for their name.
SIDE_EFFECT_IMPORTS = frozenset(
    [
        "sklearn.experimental",
        "tensorflow_text",
        "tensorflow_addons",
        "pybullet_envs",
        "mpl_toolkits",
        "gym_minigrid",
        "minigrid",
        "gym_anytrading",
        "gym_maze",
        "gym_toytext",
        "ale_py",
        "init_paths",
        "gymnasium_robotics",
        "tensorflow_io",
        "tensorflow_hub",
        "jax_cuda",
        "torch_xla",
        "pandas_ta",
        "swifter",
        "modin",
        "sklearnex",
        "intel_extension_for_pytorch",
        "pint_pandas",
        "geoalchemy2",
        "tensorflow_decision_forests",
        "readline",
        "nni",
        "pillow_heif",
        "pillow_avif",
        "janitor",
        "skimpy",
    ]
)
IMPLICIT_RESULTS = frozenset({"None", "Ellipsis"})


def last(dotted: str) -> str:
    """The last part of a dotted name."""
    return dotted.rpartition(".")[2]


def first(dotted: str) -> str:
    """The first part of a dotted name, without call or subscript marks."""
    head = dotted.partition(".")[0]
    return head.partition("(")[0].partition("[")[0]


def is_class_name(dotted: str) -> bool:
    """Whether the last part looks like a class (``Net``, ``StandardScaler``), not a constant or a function."""
    name = last(dotted)
    return bool(name) and name[0].isupper() and not (name.isupper() and len(name) > 6)


def is_transformer(dotted: str) -> bool:
    """Whether it constructs something that prepares data."""
    return TRANSFORMER_CLASS.match(last(dotted)) is not None


def is_model(dotted: str) -> bool:
    """Whether it constructs something that learns."""
    name = last(dotted)
    if TRANSFORMER_CLASS.match(name) or OPTIMIZER_CLASS.match(name) or LOSS_CLASS.match(name):
        return False
    return MODEL_NAME.match(name) is not None


def is_instance(dotted: str) -> bool:
    """Whether it constructs an object that later calls may change through other objects (not plain data)."""
    return is_model(dotted) or (is_class_name(dotted) and DATA_CLASS.match(last(dotted)) is None)
