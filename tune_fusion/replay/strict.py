from tune_fusion.events import RungDecision
from tune_fusion.tuning.asha import Asha
class Strict(Asha):
    def judge(self, trial, epoch, value):
        d = super().judge(trial, epoch, value)
        if d is None: return None
        if d.seen < self.reduction_factor:
            return d.model_copy(update={"kept":0,"goes_on":False})
        return d
