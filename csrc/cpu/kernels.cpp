// The table of kernels of one capability. Compiled once for each, with MIND_CAPABILITY as its name.
#include "kernels.h"

#include "cross_entropy.h"
#include "divergence.h"
#include "divergence_gradient.h"
#include "gather.h"
#include "gradient.h"
#include "jeffreys.h"
#include "mixture.h"
#include "pairs.h"
#include "project.h"
#include "shard.h"
#include "stream.h"
#include "stream_end.h"

#define MIND_STRING_(name) #name
#define MIND_STRING(name) MIND_STRING_(name)

namespace mind::MIND_CAPABILITY {

extern const Kernels table;
const Kernels table = {MIND_STRING(MIND_CAPABILITY),
                       run_rows,
                       run_count,
                       run_entries,
                       run_background,
                       run_shard_sums,
                       run_shard_gradient,
                       run_shard_count,
                       run_gather,
                       run_group_normalizer,
                       run_pairs<Jsd>,
                       run_pairs<Jeffreys>,
                       run_mixture,
                       run_group_gradient,
                       run_divergence,
                       run_others,
                       run_spread,
                       kStripRows,
                       run_pack,
                       run_project,
                       project_scratch,
                       run_stream,
                       stream_scratch,
                       finish_stream,
                       write_kept,
                       run_kept_values,
                       plan_products,
                       pack_products,
                       join_products,
                       prepare_gradient,
                       run_gradient,
                       run_dense_gradient,
                       prepare_divergence,
                       run_divergence_slopes,
                       find_shares,
                       run_divergence_gradient,
                       join_divergence,
                       prepare_listed,
                       run_listed_gradient};

}  // namespace mind::MIND_CAPABILITY
