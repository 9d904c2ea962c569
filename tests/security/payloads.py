"""Harm that a TensorFlow graph can do, one operation at a time: what to plant in a SavedModel.

Each payload is a function that is traced, so that its operation has real inputs and does what it does. `trust=True` in
the harness shows which of them are live on a machine. The operations of `BARE` cannot be traced; only their names are
planted.
"""

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import function_pb2

from tests.security.harness import Canary

raw = tf.raw_ops

BARE = tuple(
    """
    _Send _Recv _HostSend _HostRecv _Arg _ReadVariablesOp _XlaHostComputeMlir _XlaSendFromHost _XlaRecvAtHost
    _XlaCompile _XlaRun _FusedConv2D _MklConv2D _If _While _ParallelConcatStart _ScopedAllocator _EagerConst
    _UnaryOpsComposition XlaHostCompute XlaSendToHost XlaRecvFromHost XlaLaunch XlaLaunchV2 XlaCallModule
    XlaVariadicReduceV2 XlaWhile XlaIf TPUReplicate TPUCompile TPUExecute ConfigureDistributedTPU TPUPartitionedCall
    RemoteCall RpcServer RpcClient RpcCall CollectiveReduceV2 CollectiveGatherV2 CollectiveBcastSend
    CollectiveBcastSendV2 CollectiveBcastRecvV2 NcclAllReduce CollectiveInitializeCommunicator DebugGradientIdentity
    DebugNanCount BatchFunction SymbolicGradient TRTEngineOp PyFuncStateless MyCustomOp EagerPyFunc2
    CreateSummaryDbWriter DecodeProtoV2 EncodeProto MakeIterator IteratorV2 OneShotIterator MultiDeviceIterator
    AnonymousIteratorV3 DeserializeIterator DatasetFromGraph GeneratorDataset MapAndBatchDataset ParallelMapDatasetV2
    DataServiceDatasetV4 RegisterDatasetV2 LMDBReader TFRecordReader FixedLengthRecordReader HashTable
    MutableDenseHashTableV2 LookupTableRemoveV2 VarHandleOp Placeholder QueueDequeueV2 ReaderReadUpToV2 FakeQueue
    DestroyResourceOp GetSessionHandleV2 Stage Unstage MapStage Barrier BoostedTreesEnsembleV2
    TensorForestTreeResourceHandleOp DecodeImage LoadTPUEmbeddingADAMParameters InfeedEnqueue OutfeedDequeue
    ExecuteTPUEmbeddingPartitioner UncompressElement RewriteDataset AudioMicrofrontend KMC2ChainInitialization
    ReadVariableXlaSplitND AssignVariableXlaConcatND XlaCustomCallV2 KafkaDataset BigQueryReader
    CudnnRNNParamsToCanonical
    """.split()
)
"""Operations by name: internal ones, those of other devices and runtimes, and some that are not registered."""


_STRINGS = {"output_types": [tf.string], "output_shapes": [[]]}


def _dataset(make: Callable) -> Callable:
    """Read all of a data set."""

    def payload(canary: Canary):
        for _ in tf.data.experimental.from_variant(make(canary), tf.TensorSpec(None, tf.string)):
            pass

    return payload


def _reader(make: Callable) -> Callable:
    """Read once with a reader of TensorFlow 1."""

    def payload(canary: Canary):
        queue = raw.FIFOQueueV2(component_types=[tf.string], shared_name="q")
        raw.QueueEnqueueV2(handle=queue, components=[str(canary.secret)])
        raw.ReaderReadV2(reader_handle=make(), queue_handle=queue)

    return payload


def _table_of_a_file(canary: Canary):
    table = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="t")
    raw.InitializeTableFromTextFileV2(
        table_handle=table, filename=str(canary.secret), key_index=0, value_index=1, vocab_size=-1, delimiter=" "
    )


def _table_import(canary: Canary):
    table = raw.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="m")
    raw.LookupTableImportV2(table_handle=table, keys=["a"], values=tf.constant([1], tf.int64))
    raw.LookupTableExportV2(table_handle=table, Tkeys=tf.string, Tvalues=tf.int64)


def _summary(canary: Canary):
    writer = raw.SummaryWriter(shared_name="w")
    raw.CreateSummaryFileWriter(
        writer=writer, logdir=str(canary.folder / "logs"), max_queue=1, flush_millis=1, filename_suffix="x"
    )
    raw.WriteScalarSummary(writer=writer, step=tf.constant(0, tf.int64), tag="x", value=1.0)
    raw.FlushSummaryWriter(writer=writer)


def _text_lines(path: Path):
    return raw.TextLineDataset(filenames=[str(path)], compression_type="", buffer_size=tf.constant(0, tf.int64))


def _cache(canary: Canary):
    lines = raw.TensorSliceDataset(components=[tf.constant(["a"])], output_shapes=[[]])
    return raw.CacheDataset(input_dataset=lines, filename=str(canary.planted), **_STRINGS)


def _map_write(canary: Canary):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def write(text):
        raw.WriteFile(filename=str(canary.planted), contents=text)
        return text

    lines = raw.TensorSliceDataset(components=[tf.constant(["a"])], output_shapes=[[]])
    return raw.MapDataset(
        input_dataset=lines,
        other_arguments=[],
        f=write.get_concrete_function(),
        **_STRINGS,
    )


def _service(canary: Canary):
    return raw.DataServiceDatasetV2(
        dataset_id=tf.constant(0, tf.int64),
        processing_mode="parallel_epochs",
        address=canary.address,
        protocol="grpc",
        job_name="x",
        consumer_index=tf.constant(-1, tf.int64),
        num_consumers=tf.constant(-1, tf.int64),
        max_outstanding_requests=tf.constant(1, tf.int64),
        iteration_counter=raw.DummyIterationCounter(),
        **_STRINGS,
    )


PAYLOADS: dict[str, Callable[[Canary], object]] = {
    "WriteFile": lambda c: raw.WriteFile(filename=str(c.planted), contents="x"),
    "ReadFile": lambda c: tf.print(raw.ReadFile(filename=str(c.secret)), output_stream="file:///dev/null"),
    "SaveV2": lambda c: raw.SaveV2(
        prefix=str(c.planted), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros([2])]
    ),
    "Save": lambda c: raw.Save(filename=str(c.planted), tensor_names=["x"], data=[tf.zeros([2])]),
    "SaveSlices": lambda c: raw.SaveSlices(
        filename=str(c.planted), tensor_names=["x"], shapes_and_slices=[""], data=[tf.zeros([2])]
    ),
    "RestoreV2": lambda c: raw.RestoreV2(
        prefix=str(c.folder / "weights"), tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
    ),
    "Restore": lambda c: raw.Restore(file_pattern=str(c.folder / "*"), tensor_name="x", dt=tf.float32),
    "RestoreSlice": lambda c: raw.RestoreSlice(
        file_pattern=str(c.folder / "*"), tensor_name="x", shape_and_slice="", dt=tf.float32
    ),
    "MergeV2Checkpoints": lambda c: raw.MergeV2Checkpoints(
        checkpoint_prefixes=[str(c.folder / "weights")], destination_prefix=str(c.planted), allow_missing_files=True
    ),
    "ShardedFilename": lambda c: raw.ShardedFilename(basename=str(c.planted), shard=0, num_shards=1),
    "ShardedFilespec": lambda c: raw.ShardedFilespec(basename=str(c.planted), num_shards=1),
    "MatchingFiles": lambda c: raw.MatchingFiles(pattern=str(c.folder / "*")),
    "ImmutableConst": lambda c: (
        raw.ImmutableConst(dtype=tf.uint8, shape=[4], memory_region_name=str(c.secret)) + tf.constant(1, tf.uint8)
    ),
    "FileSystemSetConfiguration": lambda c: raw.FileSystemSetConfiguration(scheme="file", key="x", value="y"),
    "GenerateVocabRemapping": lambda c: raw.GenerateVocabRemapping(
        new_vocab_file=str(c.secret), old_vocab_file=str(c.secret), new_vocab_offset=0, num_new_vocab=1
    ),
    "LoadAndRemapMatrix": lambda c: raw.LoadAndRemapMatrix(
        ckpt_path=str(c.folder / "weights"),
        old_tensor_name="x",
        row_remapping=tf.constant([0], tf.int64),
        col_remapping=tf.constant([], tf.int64),
        initializing_values=[],
        num_rows=1,
        num_cols=2,
    ),
    "PrintV2": lambda c: raw.PrintV2(input="x", output_stream=f"file://{c.planted}"),
    "Print": lambda c: raw.Print(input=tf.zeros([]), data=[tf.zeros([])], message="x"),
    "PyFunc": lambda c: tf.numpy_function(lambda: c.planted.write_text("x") and 0, [], tf.int64),
    "EagerPyFunc": lambda c: tf.py_function(lambda: c.planted.write_text("x") and 0, [], tf.int64),
    "InitializeTableFromTextFileV2": _table_of_a_file,
    "LookupTableImportV2": _table_import,
    "CreateSummaryFileWriter": _summary,
    "TextLineDataset": _dataset(lambda c: _text_lines(c.secret)),
    "TFRecordDataset": _dataset(
        lambda c: raw.TFRecordDataset(
            filenames=[str(c.secret)], compression_type="", buffer_size=tf.constant(0, tf.int64)
        )
    ),
    "FixedLengthRecordDatasetV2": _dataset(
        lambda c: raw.FixedLengthRecordDatasetV2(
            filenames=[str(c.secret)],
            header_bytes=tf.constant(0, tf.int64),
            record_bytes=tf.constant(1, tf.int64),
            footer_bytes=tf.constant(0, tf.int64),
            buffer_size=tf.constant(0, tf.int64),
            compression_type="",
        )
    ),
    "CSVDataset": _dataset(
        lambda c: raw.CSVDataset(
            filenames=[str(c.secret)],
            compression_type="",
            buffer_size=tf.constant(100, tf.int64),
            header=False,
            field_delim=" ",
            use_quote_delim=False,
            na_value="",
            select_cols=tf.constant([0], tf.int64),
            record_defaults=[[""]],
            output_shapes=[[]],
        )
    ),
    "SqlDataset": _dataset(
        lambda c: raw.SqlDataset(
            driver_name="sqlite",
            data_source_name=str(c.planted),
            query="create table x (y)",
            output_types=[tf.string],
            output_shapes=[[]],
        )
    ),
    "LMDBDataset": _dataset(
        lambda c: raw.LMDBDataset(filenames=[str(c.secret)], output_types=[tf.string], output_shapes=[[]])
    ),
    "MatchingFilesDataset": _dataset(lambda c: raw.MatchingFilesDataset(patterns=[str(c.folder / "*")])),
    "CacheDataset": _dataset(_cache),
    "MapDataset": _dataset(_map_write),
    "LoadDataset": _dataset(
        lambda c: raw.LoadDataset(
            path=str(c.folder),
            reader_func_other_args=[],
            output_types=[tf.string],
            output_shapes=[[]],
            reader_func=tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([], tf.variant)),
        )
    ),
    "DataServiceDatasetV2": _dataset(_service),
    "DatasetToTFRecord": lambda c: raw.DatasetToTFRecord(
        input_dataset=_text_lines(c.secret), filename=str(c.planted), compression_type=""
    ),
    "TextLineReaderV2": _reader(lambda: raw.TextLineReaderV2(shared_name="r")),
    "WholeFileReaderV2": _reader(lambda: raw.WholeFileReaderV2(shared_name="r")),
    "TFRecordReaderV2": _reader(lambda: raw.TFRecordReaderV2(shared_name="r")),
    "DebugIdentityV2": lambda c: raw.DebugIdentityV2(
        input=tf.zeros([2]), tfdbg_context_id="x", debug_urls=[f"file://{c.folder}/dump"], tensor_debug_mode=8
    ),
    "DebugIdentity": lambda c: raw.DebugIdentity(input=tf.zeros([2]), debug_urls=[f"file://{c.folder}/dump"]),
    "DebugIdentity to a host": lambda c: raw.DebugIdentity(input=tf.zeros([2]), debug_urls=[f"grpc://{c.address}"]),
    "DebugNumericSummary": lambda c: raw.DebugNumericSummary(
        input=tf.zeros([2]), debug_urls=[f"file://{c.folder}/dump"]
    ),
    "CollectiveReduce": lambda c: raw.CollectiveReduce(
        input=tf.zeros([2]),
        group_size=2,
        group_key=1,
        instance_key=1,
        merge_op="Add",
        final_op="Id",
        subdiv_offsets=[0],
        timeout_seconds=1.0,
    ),
    "Timestamp": lambda c: raw.Timestamp(),
    "Abort": lambda c: tf.cond(
        tf.constant(value=True), lambda: raw.Abort(error_msg="x", exit_without_error=True), lambda: tf.no_op()
    ),
    "MutexV2": lambda c: raw.MutexLock(mutex=raw.MutexV2(shared_name="m")),
    "FIFOQueueV2": lambda c: raw.QueueSizeV2(handle=raw.FIFOQueueV2(component_types=[tf.string], shared_name="q")),
    "ParseTensor": lambda c: raw.ParseTensor(serialized="", out_type=tf.float32),
    "DecodeProtoV2": lambda c: raw.DecodeProtoV2(
        bytes=["x"],
        message_type="x",
        field_names=["x"],
        output_types=[tf.string],
        descriptor_source=str(c.secret),
    ),
}
"""Of each operation: what is traced to plant it."""


def library_of(name: str, canary: Canary) -> function_pb2.FunctionDefLibrary:
    """The function `evil` without arguments that runs a payload, and the functions that it calls."""
    traced = tf.function(lambda: (PAYLOADS[name](canary), tf.constant(0))[1], autograph=True).get_concrete_function()
    library = function_pb2.FunctionDefLibrary()
    library.CopyFrom(traced.graph.as_graph_def().library)
    main = library.function.add()
    main.CopyFrom(traced.function_def)
    main.signature.name = "evil"
    for node in main.node_def:  # whatever has no output that is used, or is stateful or not, is run
        main.control_ret[node.name] = node.name
    main.signature.control_output[:] = [node.name for node in main.node_def]
    return library


def bare_library_of(operation: str) -> function_pb2.FunctionDefLibrary:
    """The function `evil` that holds a node of an operation without inputs."""
    library = function_pb2.FunctionDefLibrary()
    main = library.function.add()
    main.signature.name, main.signature.is_stateful = "evil", True
    main.signature.output_arg.add(name="zero", type=tf.int32.as_datatype_enum)
    zero = main.node_def.add(name="zero", op="Const")
    zero.attr["dtype"].type = tf.int32.as_datatype_enum
    zero.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0))
    main.node_def.add(name="bare", op=operation)
    main.ret["zero"], main.control_ret["bare"] = "zero:output:0", "bare"
    main.signature.control_output.append("bare")
    return library
