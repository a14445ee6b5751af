/* onnx_print.c: `cnnscope inspect` of an .onnx file. Prints what can be read before anything is refused. */
#include <stdio.h>
#include <string.h>

#include "onnx_parts.h"

enum { NAME_WIDTH = 40 };

static const char *type_name(int type) {
    static const char *const names[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                        "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                        "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
    return type >= 0 && type < (int)(sizeof names / sizeof *names) ? names[type] : "unknown";
}

/* Of names in the file, which may hold anything. */
static void print_name(const char *name, int width) {
    int printed = 0;
    for (; *name && printed < 200; name++)
        printed += printf("%c", (unsigned char)*name < 0x20 || *name == 0x7f ? '?' : *name);
    printf("%*s", printed < width ? width - printed : 0, "");
}

static void print_tensors(const Onnx__GraphProto *file) {
    double elements = 0;
    putchar('\n');
    print_name("tensor", NAME_WIDTH);
    printf("  %-8s  shape\n", "type");
    for (size_t i = 0; i < file->n_initializer; i++) {
        const Onnx__TensorProto *tensor = file->initializer[i];
        double size = 1;
        print_name(tensor->name ? tensor->name : "", NAME_WIDTH);
        printf("  %-8s  (", type_name(tensor->data_type));
        for (size_t d = 0; d < tensor->n_dims && d < ONNX_RANK; d++) {
            printf("%s%lld", d ? ", " : "", (long long)tensor->dims[d]);
            size *= (double)tensor->dims[d];
        }
        printf(tensor->n_dims == 1 ? ",)%s\n" : ")%s\n", tensor->n_external_data ? "  in an external file" : "");
        elements += size;
    }
    printf("%zu tensors, %.0f elements\n", file->n_initializer, elements);
}

static void print_operations(const Onnx__GraphProto *file) {
    printf("\n%-24s  nodes\n", "operation");
    for (size_t i = 0; i < file->n_node; i++) {
        const char *op = file->node[i]->op_type;
        size_t count = 0;
        bool first = op != NULL;
        for (size_t j = 0; j < file->n_node && first; j++) {
            bool same = file->node[j]->op_type && !strcmp(op, file->node[j]->op_type);
            first = !(same && j < i);
            count += same;
        }
        if (first) {
            print_name(op, 24);
            printf("  %5zu%s\n", count,
                   onnx_op_find(file->node[i]) || onnx_fold_find(file->node[i]) ? "" : "  not supported");
        }
    }
}

static bool is_initializer(const Onnx__GraphProto *file, const char *name) {
    for (size_t i = 0; i < file->n_initializer; i++)
        if (file->initializer[i]->name && !strcmp(file->initializer[i]->name, name))
            return true;
    return false;
}

static Shape image_shape(const Onnx__GraphProto *file, Shape nominal) {
    Shape image = nominal;
    for (size_t i = 0; i < file->n_input && i < 4096; i++) {
        const Onnx__ValueInfoProto *info = file->input[i];
        const Onnx__TypeProto *type = info->type;
        if (!info->name || is_initializer(file, info->name) || !type ||
            type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE || !type->tensor_type || !type->tensor_type->shape)
            continue;
        const Onnx__TensorShapeProto *shape = type->tensor_type->shape;
        if (shape->n_dim < 2 || shape->n_dim > SHAPE_RANK + 1)
            break;
        if (shape->n_dim == 2)
            image = shape_vector(1);
        for (size_t d = 1; d < shape->n_dim; d++) {
            const Onnx__TensorShapeProto__Dimension *dim = shape->dim[d];
            bool fixed = dim->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE &&
                         dim->dim_value > 0 && dim->dim_value < 1 << 20;
            image.rank = (int)shape->n_dim - 1;
            image.dim[d - 1] = fixed ? (int)dim->dim_value : d - 1 < 3 ? nominal.dim[d - 1] : 1;
        }
        break;
    }
    return image;
}

Shape onnx_print(const void *bytes, size_t size, const char *path, Shape nominal) {
    Onnx__ModelProto *model = onnx_file_open(bytes, size, path);
    char hex[65];
    sha256_hex(hex, bytes, size);
    printf("file    %s, %zu bytes\n", path, size);
    printf("format  ONNX, IR version %lld, opset %d, made by ", (long long)model->ir_version,
           onnx_file_opset(model, path));
    print_name(model->producer_name ? model->producer_name : "?", 0);
    printf(" ");
    print_name(model->producer_version ? model->producer_version : "", 0);
    printf("\nsha256  %s\n", hex);
    print_tensors(model->graph);
    print_operations(model->graph);
    Shape image = image_shape(model->graph, nominal);
    onnx_file_close(model);
    return image;
}
