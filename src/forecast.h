/* forecast.h: --plan: what a run would take, without running it. */
#ifndef CNNSCOPE_FORECAST_H
#define CNNSCOPE_FORECAST_H

#include "job.h"

/* Collective. Tries the opened job on a few of its samples, and prints to stdout what all of it takes on --plan ranks:
 * samples, bytes by purpose and seconds by stage, as lines KEY: VALUE. Ends the job with status 1 when that does not fit
 * into the memory a rank has here. Writes no file. */
void forecast(Job *job);

#endif
