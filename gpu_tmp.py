import sys,torch,json,time,os
sys.path.insert(0,'.')
import importlib.util
spec=importlib.util.spec_from_file_location('clvq','qcompile/formats/clvq.py'); c=importlib.util.module_from_spec(spec); spec.loader.exec_module(c)
out={}
best={16:.10759860348397438,64:.029605284445392746,256:.007750656656547637}
for n,st,r,steps in ((16,128,3,300),(64,256,6,600),(256,128,10,800)):
    t=time.time(); g=c.search_grid(n,st,r,steps,device='cuda'); e=c.grid_error(g); out[n]=(e,g.cpu().tolist())
    print(n,e,e/best[n],time.time()-t,flush=True)
    json.dump(out,open(os.environ['OUT']+'/g.json','w'))
